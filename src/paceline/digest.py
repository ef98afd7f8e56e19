"""The digest of a model: sha256 over its tensors in name order, read from safetensors bytes.

Each tensor enters as its name, dtype and shape (JSON, one line) and then its raw little-endian bytes. The file's own
layout does not matter, so any process can check it, without torch.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import BaseModel, NonNegativeInt, TypeAdapter, field_validator

from paceline.errors import Corrupt

MAX_HEADER_BYTES = 100_000_000


class _Entry(BaseModel):
    dtype: str
    shape: list[NonNegativeInt]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]

    @field_validator("data_offsets")
    @classmethod
    def _in_order(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] > value[1]:
            raise ValueError(f"a tensor ends at {value[1]}, before its start at {value[0]}")
        return value


_object = TypeAdapter(dict[str, Any])
_entries = TypeAdapter(dict[str, _Entry])


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_digest(*paths: Path) -> str:
    """`"sha256:…"` of the tensors in one safetensors file, or in several. Raises Corrupt where a file is not one."""
    total = hashlib.sha256()
    with ExitStack() as opened:
        tensors: dict[str, tuple[Any, int, _Entry]] = {}
        for path in paths:
            file = opened.enter_context(path.open("rb"))
            header, data_start = read_header(file, path.stat().st_size)
            tensors |= {name: (file, data_start, entry) for name, entry in header.items()}
        for name in sorted(tensors):
            file, data_start, entry = tensors[name]
            total.update(digest_line(name, entry.dtype, entry.shape))
            start, end = entry.data_offsets
            file.seek(data_start + start)
            remaining = end - start
            while remaining:
                chunk = file.read(min(remaining, 1 << 20))
                if not chunk:
                    raise Corrupt(f"{Path(file.name).name} ends inside tensor {name!r}.", "Fetch the file again.")
                total.update(chunk)
                remaining -= len(chunk)
    return f"sha256:{total.hexdigest()}"


def digest_line(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    """What enters the digest before a tensor's bytes."""
    return json.dumps([name, dtype, list(shape)]).encode() + b"\n"


def read_header(file: Any, size: int) -> tuple[dict[str, _Entry], int]:
    """(each tensor's dtype, shape and place, where their bytes begin) of a safetensors file at its start.

    Raises Corrupt where it is none.
    """
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
        raise Corrupt("the file is not safetensors: its header length is impossible.", "Fetch the file again.")
    try:
        header = _object.validate_json(file.read(length))
        header.pop("__metadata__", None)
        return _entries.validate_python(header), 8 + length
    except ValueError as broken:
        raise Corrupt(f"the file is not safetensors: {broken}.", "Fetch the file again.") from None
