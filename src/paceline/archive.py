"""Folders as tar files: the same files give the same bytes, and unpacking never writes outside its folder."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from paceline.errors import Corrupt


def pack_folder(folder: Path, archive: Path, files: Iterable[str] | None = None) -> None:
    """Write files of `folder`, or all of it, into a tar file. files: relative paths.

    Owners and times are left out, so that an unchanged folder is an unchanged blob. A link to a file is that file; one
    to a folder stays a link where it stays inside, and is left out where it leaves.
    """
    names = sorted(files if files is not None else (str(path.relative_to(folder)) for path in folder.rglob("*")))
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT, dereference=True) as tar:
        for name in names:
            path = folder / name
            if path.is_symlink() and path.is_dir():
                _add_link(tar, path, folder, name)
            elif path.is_dir():
                tar.addfile(_anonymous(tar.gettarinfo(path, arcname=name)))
            elif path.is_file():  # no socket or pipe, and no link to nothing
                with path.open("rb") as file:
                    tar.addfile(_anonymous(tar.gettarinfo(path, arcname=name)), file)


def _add_link(tar: tarfile.TarFile, path: Path, folder: Path, name: str) -> None:
    target = path.resolve()
    if target.is_relative_to(folder.resolve()):
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = tarfile.SYMTYPE, os.path.relpath(target, path.parent.resolve())
        tar.addfile(entry)


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    return entry


def unpack_folder(archive: Path, folder: Path) -> None:
    """Unpack into `folder`, which is there only once it is whole. Raises Corrupt for what is no such tar file."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with tarfile.open(archive, "r:") as tar:
            tar.extractall(part, filter="data")
        part.chmod(0o755)
        part.rename(folder)
    except tarfile.TarError as error:
        raise Corrupt(f"{archive.name[:12]}… is not a folder's tar file: {error}.", "Fetch it again.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
