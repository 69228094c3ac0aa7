"""What operating systems differ in."""

from __future__ import annotations

import ctypes
import os
import sys

_M_ARENA_MAX = -8  # malloc.h of glibc


def usable_cores() -> int:
    """Processor cores that this process may use; where the system doesn't say, those that there are."""
    allowed = getattr(os, "sched_getaffinity", None)  # Linux
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def share_free_memory() -> None:
    """Let all threads allocate from the same two arenas, where the C library is glibc, which gives each its own.

    What one thread has freed serves others then, and a process that lives long doesn't grow with their number.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 2)


def lock_file(descriptor: int, *, wait: bool = False) -> None:
    """Hold an open file or folder until it is closed; on Windows a file only.

    Raises:
        BlockingIOError: another process holds it, and `wait` is false.
    """
    if sys.platform == "win32":
        _lock_a_byte(descriptor, wait=wait)
        return
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


if sys.platform == "win32":
    import msvcrt
    import time

    _BEYOND = 1 << 40  # Windows doesn't let others read locked bytes, so one that no file has is locked

    def _lock_a_byte(descriptor: int, *, wait: bool) -> None:
        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        try:
            while True:
                os.lseek(descriptor, _BEYOND, os.SEEK_SET)
                try:
                    msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
                except OSError as error:
                    if not wait:
                        raise BlockingIOError(error.errno, error.strerror) from error
                    time.sleep(0.2)
                else:
                    return
        finally:
            os.lseek(descriptor, position, os.SEEK_SET)
