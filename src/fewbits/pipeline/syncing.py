"""Bytes forced to the disk beside the work that makes them: the disk is never idle, and little is left at the end."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundSync:
    """Calls a function again and again in a thread of its own, from `start` until `stop`."""

    def __init__(self, sync: Callable[[], None], seconds: float) -> None:
        """Make it ready.

        Args:
            sync: what forces the bytes to the disk; may raise OSError.
            seconds: between two calls.
        """
        self._sync, self._seconds = sync, seconds
        self._stopped = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="fewbits-sync", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Wait for the call that is under way, and end."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def check(self) -> None:
        """Raise what a call failed with: the system reports that bytes are lost to one caller only.

        Raises:
            OSError: the disk fails.
        """
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            try:
                self._sync()
            except OSError as error:
                self._error = error
                return
