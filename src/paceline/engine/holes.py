"""Gives back the disk below the beginning of a file that is still being written, as of logs that were sent on."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

KEEP_SIZE, PUNCH_HOLE = 1, 2  # of linux/falloc.h


def free_beginning(path: Path, nbytes: int) -> None:
    """The file's size stays, and its first `nbytes` read as zeros. Where the system can't do that, nothing happens."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "fallocate"):
        return
    handle = os.open(path, os.O_WRONLY)
    try:
        libc.fallocate(handle, KEEP_SIZE | PUNCH_HOLE, ctypes.c_longlong(0), ctypes.c_longlong(nbytes))
    finally:
        os.close(handle)
