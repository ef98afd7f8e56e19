"""Blobs on the master's disk: written beside, synced, hashed, and only then given their name, which is their sha256."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from paceline.digest import file_sha256
from paceline.errors import Corrupt, InvalidSpec, NotFound
from paceline.transfer import disk_error


class Blobs:
    """Thread-safe. A torn upload leaves a part that the next try resumes; a wrong one leaves nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "blobs"
        self._parts = folder / "parts"
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        for made in (self.folder, self._parts):
            made.mkdir(parents=True, exist_ok=True)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those that are not here. The others count as new: who asks is about to need them."""
        absent = []
        for name in names:
            try:
                os.utime(self._path(name))
            except FileNotFoundError:
                absent.append(name)
        return absent

    def path(self, name: str) -> Path:
        """The blob's file. Raises NotFound."""
        path = self._path(name)
        if not path.exists():
            raise NotFound(f"there is no blob {name[:12]}….", "Upload it first.")
        return path

    def append(self, name: str, offset: int, total: int, chunk: bytes) -> tuple[int, bool]:
        """Add a chunk of an upload: (bytes received so far, whether the blob is complete).

        A chunk that does not start where the part ends is left out; the sender goes on from what is returned.
        Raises Corrupt where the whole does not have the name's sha256, and DiskFull.
        """
        path, part = self._path(name), self._parts / name
        with self._locks[name]:
            if not self.missing([name]):
                return total, True
            have = part.stat().st_size if part.exists() else 0
            if have > total:  # left by an upload that lied about its length
                part.unlink()
                have = 0
            if offset != have or have + len(chunk) > total:
                return have, False
            try:
                return self._write(path, part, have, total, chunk)
            except OSError as error:
                part.unlink(missing_ok=True)
                raise disk_error(error, path) from error

    def _write(self, path: Path, part: Path, have: int, total: int, chunk: bytes) -> tuple[int, bool]:
        with part.open("ab") as file:
            file.write(chunk)
            file.flush()
            if have + len(chunk) < total:
                return have + len(chunk), False
            os.fsync(file.fileno())
        found = file_sha256(part)
        if found != path.name:
            part.unlink()
            raise Corrupt(
                f"the upload's {total} bytes have sha256 {found[:12]}…, not {path.name[:12]}….", "Upload it again."
            )
        os.replace(part, path)
        _sync_folder(path.parent)
        return total, True

    def remove(self, names: Iterable[str]) -> None:
        """Delete these blobs, where they are here; a name that no blob can have is not."""
        for name in names:
            with contextlib.suppress(InvalidSpec):
                self._path(name).unlink(missing_ok=True)

    def keep_only(self, names: set[str], before: float) -> int:
        """Delete all other blobs and parts that were last written before that time; return how many bytes that freed.

        Younger ones may belong to a submission that is still on its way.
        """
        freed = 0
        for path in [*self.folder.iterdir(), *self._parts.iterdir()]:
            with contextlib.suppress(FileNotFoundError):  # an upload was completed meanwhile, or a checkpoint dropped
                if path.name not in names and path.stat().st_mtime < before:
                    freed += path.stat().st_size
                    path.unlink()
        return freed

    def _path(self, name: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", name):
            raise InvalidSpec(f"{name[:80]!r} is not a blob's name.", "A blob is named by its sha256, in hex.")
        return self.folder / name


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
