"""A folder of at most so many bytes, shared by all processes of a node: the cache of unpacked shards."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Any

from paceline.errors import InvalidSpec
from paceline.transfer import disk_error

PART = ".part-"
PATIENCE_S = 60.0


class NoRoom(Exception):
    """Nothing may be evicted, and the bound is reached."""


class BoundedFolder:
    """Files appear whole and stay until others need their room: the least recently used one goes first.

    progressed: told of the bytes that are written. The bound holds for the sum of all sizes at any time, files being
    written included. A file may be removed while somebody maps it, which keeps its contents: whoever reads asks
    `touch` first, and lets go of what is gone.
    """

    def __init__(self, path: Path, bound: int, progressed: Callable[[int], None] = lambda _nbytes: None) -> None:
        self.path, self.bound, self.progressed = path, bound, progressed
        path.mkdir(parents=True, exist_ok=True)
        self._locks = path.with_name(f"{path.name}.locks")
        self._locks.mkdir(exist_ok=True)

    def touch(self, name: str) -> bool:
        """Whether the file is there; it counts as used now."""
        try:
            os.utime(self.path / name)
        except FileNotFoundError:
            return False
        return True

    @contextlib.contextmanager
    def alone(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Hold the name's lock; False where it is another's and we don't wait."""
        with (self._locks / name).open("w") as lock:
            yield _locked(lock, wait)

    @contextlib.contextmanager
    def writing(self, spared: Collection[str] = (), patience_s: float = PATIENCE_S) -> Iterator[Part]:
        """A file to write. Unless it is published it is gone at the end. spared: files that must not go for it.

        Raises NoRoom after `patience_s` without room.
        """
        with self.alone(".room"):
            handle, name = tempfile.mkstemp(prefix=PART, dir=self.path)
            fcntl.flock(handle, fcntl.LOCK_EX)  # tells it from what a killed process left
        part = Part(self, os.fdopen(handle, "wb", buffering=0), Path(name), frozenset(spared), patience_s)
        try:
            yield part
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            part.close()

    def wait(self) -> None:
        """For a moment, for others who write; what they have written meanwhile is progress."""
        before = self._being_written()
        time.sleep(0.05)
        if self._being_written() != before:
            self.progressed(1)

    def _being_written(self) -> int:
        return sum(found.st_size for path, found in _entries(self.path) if path.name.startswith(PART))

    def reserve(self, part: Part, nbytes: int) -> None:
        """Let the part grow to `nbytes`, as its size on disk shows at once. Raises NoRoom, InvalidSpec."""
        if nbytes > self.bound:
            raise InvalidSpec(
                f"one shard takes more than {nbytes:,} bytes, and cache={self.bound} bytes.",
                "Give a larger cache=, or make smaller shards.",
            )
        deadline = time.monotonic() + part.patience_s
        while not self._reserved(part, nbytes):
            if time.monotonic() >= deadline:
                raise NoRoom
            self.wait()

    def _reserved(self, part: Part, nbytes: int) -> bool:
        with self.alone(".room"):
            entries = sorted(_entries(self.path), key=lambda entry: entry[1].st_mtime_ns)
            excess = sum(found.st_size for _, found in entries) - part.reserved + nbytes - self.bound
            for path, found in entries:
                if excess <= 0:
                    break
                if path != part.path and path.name not in part.spared and _remove(path):
                    excess -= found.st_size
            if excess > 0:
                return False
            part.grow(nbytes)
            return True


class Part(io.RawIOBase):
    """A file being written, within its folder's bound."""

    def __init__(
        self, folder: BoundedFolder, file: IO[bytes], path: Path, spared: frozenset[str], patience_s: float
    ) -> None:
        self._folder, self._file = folder, file
        self.path, self.spared, self.patience_s = path, spared, patience_s
        self.reserved = 0
        self._end = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._end

    def grow(self, nbytes: int) -> None:
        self._file.truncate(nbytes)
        self.reserved = nbytes

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self._end + len(view) > self.reserved:
            self._folder.reserve(self, self._end + len(view))
        try:
            written = 0
            while written < len(view):
                written += self._file.write(view[written:])
        except OSError as error:
            raise disk_error(error, self.path) from error
        self._end += len(view)
        self._folder.progressed(len(view))
        return len(view)

    def publish(self, name: str) -> None:
        """Give the whole file its name."""
        self._file.truncate(self._end)
        os.replace(self.path, self._folder.path / name)

    def close(self) -> None:
        self._file.close()
        super().close()


def _entries(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            yield Path(entry.path), entry.stat()


def _remove(path: Path) -> bool:
    """Remove a whole file, or a part that nobody writes any more."""
    with contextlib.suppress(FileNotFoundError):
        if path.name.startswith(PART):
            with path.open("rb") as part:
                if not _locked(part, wait=False):
                    return False
        path.unlink()
    return True


def _locked(file: IO[Any], wait: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def used_folder(parent: Path, key: str) -> tuple[Path, IO[str]]:
    """The folder of some data, in use as long as the returned file is open; those that nobody uses are removed."""
    parent.mkdir(parents=True, exist_ok=True)
    lock = (parent / f"{key}.used").open("w")
    fcntl.flock(lock, fcntl.LOCK_SH)
    for other in parent.glob("*.used"):
        if other.stem != key:
            with other.open("w") as unused:
                if _locked(unused, wait=False):
                    shutil.rmtree(parent / other.stem, ignore_errors=True)
                    shutil.rmtree(parent / f"{other.stem}.locks", ignore_errors=True)
    return parent / key, lock
