"""The scalars in TensorBoard's event files, read as they grow, without TensorBoard or protobuf.

The files are TFRecords (length, crc, bytes, crc) of `Event` messages; what is read of these is in
tensorboard/compat/proto: event.proto, summary.proto and tensor.proto. Checksums are not checked: values are shown only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

PATTERN = "*tfevents*"
MAX_RECORD_BYTES = 64 * 2**20
HEADER, FOOTER = 12, 4
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5
FLOAT, DOUBLE = 1, 2


class EventFiles:
    """The event files below some folders. What they hold already is of an earlier attempt, and left out."""

    def __init__(self, folders: tuple[Path, ...]) -> None:
        self._folders = folders
        self._offsets = {path: path.stat().st_size for path in self._paths()}

    def _paths(self) -> list[Path]:
        return sorted({path for folder in self._folders for path in folder.rglob(PATTERN) if path.is_file()})

    def read(self) -> tuple[int | None, dict[str, float]]:
        """(the newest step, the newest value of each tag) since the last call."""
        step, values = None, {}
        for path in self._paths():
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                data = file.read()
            for record in _records(data):
                self._offsets[path] = self._offsets.get(path, 0) + HEADER + len(record) + FOOTER
                at, found = scalars(record)
                if found:
                    step = max(at, step or 0)
                    values.update(found)
        return step, values


def _records(data: bytes) -> Iterator[bytes]:
    """Those that are whole."""
    at = 0
    while len(data) - at >= HEADER:
        (length,) = struct.unpack_from("<Q", data, at)
        end = at + HEADER + length + FOOTER
        if length > MAX_RECORD_BYTES or end > len(data):
            return
        yield data[at + HEADER : end - FOOTER]
        at = end


def scalars(event: bytes) -> tuple[int, dict[str, float]]:
    """The step of an Event, and the scalars of its summary by their tags; none for an event that is not readable."""
    step, found = 0, dict[str, float]()
    try:
        for number, value in _fields(event):
            if number == 2 and isinstance(value, int):
                step = value
            elif number == 5 and isinstance(value, bytes):
                found.update(part for part in map(_scalar, _of(value, 1)) if part is not None)
    except (IndexError, struct.error, UnicodeDecodeError):
        return 0, {}
    return step, found


def _scalar(value: bytes) -> tuple[str, float] | None:
    """(tag, number) of a Summary.Value; None for an image, a histogram or text."""
    fields = dict(_fields(value))
    tag, simple, tensor = fields.get(1), fields.get(2), fields.get(8)
    if not isinstance(tag, bytes):
        return None
    if isinstance(simple, bytes):
        return tag.decode(), float(struct.unpack("<f", simple)[0])
    number = _number(tensor) if isinstance(tensor, bytes) else None
    return None if number is None else (tag.decode(), number)


def _number(tensor: bytes) -> float | None:
    """Of a TensorProto that holds one float or double."""
    fields = dict(_fields(tensor))
    dtype = fields.get(1)
    if dtype not in (FLOAT, DOUBLE):
        return None
    form, values = ("<f", 5) if dtype == FLOAT else ("<d", 6)
    data = fields.get(4) or fields.get(values)
    if not isinstance(data, bytes) or len(data) != struct.calcsize(form):
        return None
    return float(struct.unpack(form, data)[0])


def _of(message: bytes, wanted: int) -> list[bytes]:
    return [value for number, value in _fields(message) if number == wanted and isinstance(value, bytes)]


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a protobuf message; a fixed-size number as its bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == BYTES:
            length, at = _varint(message, at)
        else:
            length = {EIGHT_BYTES: 8, FOUR_BYTES: 4}.get(kind, len(message))
        if at + length > len(message):
            raise IndexError(at + length)
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
