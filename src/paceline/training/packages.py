"""Opening packages: the only place that unpickles what a user sent, and it runs in workers only."""

from __future__ import annotations

import fcntl
import mmap
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paceline.digest import file_sha256
from paceline.errors import Corrupt
from paceline.spec import PackageRef
from paceline.transfer import BlobStore


class NodeCache:
    """Blobs as files, once a node. `shared`: folders that hold some already (the master's own, on its node)."""

    def __init__(self, folder: Path, shared: Sequence[Path], store: BlobStore) -> None:
        self.folder = folder
        self._shared = shared
        self._store = store

    def path(self, name: str) -> Path:
        """The blob's file, fetched by whichever worker of the node comes first."""
        for folder in self._shared:
            if (folder / name).exists():
                return folder / name
        path = self.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                os.utime(path)  # the agent lets go of what is not used for long
            else:
                self._store.download(name, path)
        return path

    def checked(self, name: str) -> Path:
        """The blob's file, whose bytes are those of its name. Raises Corrupt, or NotFound where it is gone."""
        path = self.path(name)
        if _holds(path, name):
            return path
        if path.parent in self._shared:
            raise Corrupt(f"the file of blob {name[:12]}… does not hold the bytes that its name says.")
        path.unlink()
        return self.path(name)  # what is fetched anew is checked on its way


def _holds(path: Path, name: str) -> bool:
    try:
        return file_sha256(path) == name
    except OSError:  # a disk that can't read it back
        return False


def open_package(ref: PackageRef, cache: NodeCache) -> Any:
    """Fetch what this node lacks, and unpickle."""
    return unpickle(cache.path(ref.pickle), [cache.path(name) for name in ref.buffers])


def unpickle(pickled: Path, buffers: Sequence[Path]) -> Any:
    """With the buffers mapped privately: one copy of the data a node, and writes stay in this process."""
    mapped = [_mapped(path) for path in buffers]
    return pickle.loads(pickled.read_bytes(), buffers=mapped)  # noqa: S301 - the user's, in a worker


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
