"""Folders that are one process's own, for as long as it lives; and files that nobody has used for long."""

from __future__ import annotations

import fcntl
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO

LOCK = "lock"


def claim(folder: Path) -> IO[str]:
    """Make the folder this process's own; hold what is returned open. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f".{LOCK}"  # it has its name once it is held: another's sweep takes what is free
    lock = made.open("w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    made.rename(folder / LOCK)
    return lock


def sweep(parent: Path, pattern: str = "*") -> None:
    """Remove claimed folders whose processes have died: the system has let go of their locks."""
    for folder in parent.glob(pattern):
        with suppress(OSError), (folder / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def evict(folder: Path, before: float) -> None:
    """Remove files that were last used before that time; folders in it stay. Whoever has one open keeps it."""
    for path in folder.glob("*"):
        with suppress(OSError):  # it went by itself
            if path.is_file() and path.stat().st_mtime < before:
                path.unlink()
