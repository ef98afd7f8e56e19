"""Samples in a tar file, by WebDataset's naming. Only headers are read to find them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import pyarrow as pa

TYPES = {"cls": pa.int64(), "txt": pa.string(), "json": pa.string()}


class Broken(Exception):
    """What the archive holds can't be read."""


class Part(NamedTuple):
    """Where one field's bytes lie in the archive."""

    offset: int
    size: int


def samples(file: IO[bytes]) -> Iterator[dict[str, Part]]:
    """Each sample's parts by their field, in the archive's order. Raises Broken."""
    key, parts = None, dict[str, Part]()
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                base, _, field = name.partition(".")
                if (folder, base) != key and parts:
                    yield parts
                    parts = {}
                key = (folder, base)
                parts[field.lower()] = Part(member.offset_data, member.size)
                archive.members = []  # type: ignore[attr-defined] # it would keep them all
    except tarfile.TarError as error:
        raise Broken(str(error)) from error
    if parts:
        yield parts


def value(field: str, file: IO[bytes], part: Part) -> Any:
    """The field's value. Raises Broken."""
    import numpy as np

    before = file.tell()
    file.seek(part.offset)
    data = file.read(part.size)
    file.seek(before)
    try:
        if field == "cls":
            return int(data)
        if field in TYPES:
            return data.decode()
        return np.load(io.BytesIO(data), allow_pickle=False) if field == "npy" else data
    except ValueError as error:
        raise Broken(f"a .{field} file is none: {error}") from error
