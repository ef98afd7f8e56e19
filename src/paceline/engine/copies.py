"""A node's folder in memory for copies of shards: it outlives workers, and never its agent for long."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from paceline.engine import folders

MEMORY = Path("/dev/shm")  # noqa: S108 - of Linux alone; elsewhere there are no copies
PREFIX = "paceline-copies-"


class Folder:
    """One agent's. room: bytes that are free there, 0 where the system has no such file system.

    A lock on it tells that its agent lives; the folders of agents that were killed go when the next one comes.
    """

    def __init__(self) -> None:
        self.room, self._path = 0, Path("/nonexistent")
        with suppress(OSError):
            folders.sweep(MEMORY, f"{PREFIX}*")
            self._path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=MEMORY))
            self._lock = folders.claim(self._path)
            self.room = shutil.disk_usage(self._path).free

    def of_job(self, job_id: str) -> Path:
        return self._path / job_id

    def clear(self) -> None:
        """Remove what jobs keep here."""
        for path in self._path.glob("*"):
            shutil.rmtree(path, ignore_errors=True)  # of the lock, a file, this removes nothing

    def close(self) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
