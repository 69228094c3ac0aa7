"""Reading a range of a file's bytes, without keeping the file open or mapped.

A plain read instead of a memory map: a file that is cut short meanwhile gives an error rather than a
SIGBUS, and resident memory holds what was asked for and nothing else.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fewbits.errors import CheckpointError


def read_bytes(path: Path, start: int, count: int) -> npt.NDArray[np.uint8]:
    """Bytes start … start + count of a file, uint8 [count], a fresh array.

    Raises:
        CheckpointError: the file is gone, unreadable, or ends before start + count.
    """
    data = np.empty(count, np.uint8)
    view = memoryview(data)  # type: ignore[arg-type]  # NumPy's arrays are buffers
    done = 0
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            while done < count:
                got = os.preadv(descriptor, [view[done:]], start + done)
                if not got:
                    break
                done += got
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unreadable(path, error) from error
    if done < count:
        raise CheckpointError(
            f"{path} has been cut short since it was opened",
            found=f"{file_size(path)} bytes",
            allowed=f"at least {start + count}",
            action="Copy or download the file again, and leave it alone while fewbits reads it.",
        )
    return data


def file_size(path: Path) -> int:
    """Bytes of a file.

    Raises:
        CheckpointError: no such file, or not a readable one.
    """
    try:
        return path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The error for a file that the operating system won't give."""
    return CheckpointError(
        f"cannot read {path}",
        found=error.strerror or str(error),
        action="Check that the file exists and that you may read it.",
    )
