"""How a command ends when something goes wrong: one clear message on standard error, and a status."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fewbits.errors import FewbitsError

INTERRUPTED = 130  # 128 + SIGINT, as shells count it


@contextmanager
def reported(*, interrupted: str = "interrupted") -> Iterator[None]:
    """Turn FewbitsError into exit status 2 and Ctrl-C into 130, each with a message and no traceback."""
    try:
        yield
    except FewbitsError as error:
        sys.stderr.write(f"fewbits: {error}\n")
        raise SystemExit(error.exit_status) from None
    except KeyboardInterrupt:
        sys.stderr.write(f"fewbits: {interrupted}\n")
        raise SystemExit(INTERRUPTED) from None
