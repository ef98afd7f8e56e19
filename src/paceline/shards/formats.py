"""The formats of shards: how many samples a file holds, and its samples as Arrow record batches.

Only footers and headers are read to count, over the network too. Every shard is unpacked once into an uncompressed
Arrow file, which is mapped: so any sample is at hand, and the workers of a node share its pages.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import urlsplit

import pyarrow as pa

from paceline.digest import read_header
from paceline.errors import Corrupt, InvalidSpec
from paceline.shards import tar

BATCH_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Counted:
    """What a shard's footer tells. fields: names, in order. unpacked: about how many bytes it takes unpacked."""

    samples: int
    fields: tuple[str, ...]
    unpacked: int


class Format(Protocol):
    def count(self, file: io.BufferedReader, nbytes: int) -> Counted:
        """Read the footer."""

    def batches(self, path: Path, counted: Counted) -> Iterator[pa.RecordBatch]:
        """All samples in order, with these fields alone, in batches of about BATCH_BYTES."""


def format_of(url: str) -> Format:
    """By the name's ending. Raises InvalidSpec for any other."""
    ending = PurePosixPath(urlsplit(url).path).suffix.lower()
    if ending not in FORMATS:
        raise InvalidSpec(
            f"{url} ends in {ending or 'nothing'!r}.", f"Shards are files that end in {', '.join(FORMATS)}."
        )
    return FORMATS[ending]


def count(url: str, file: io.BufferedReader, nbytes: int) -> Counted:
    """Raises Corrupt where the file is none of its format."""
    counted: Counted = _or_corrupt(url, lambda: format_of(url).count(file, nbytes))
    return counted


def unpack(url: str, path: Path, counted: Counted, sink: Any) -> None:
    """Write the shard's samples as an Arrow file. Raises Corrupt where they are not as many as were counted."""

    def write() -> int:
        batches = format_of(url).batches(path, counted)
        samples = 0
        with ExitStack() as stack:
            writer = None
            for batch in map(_plain, batches):
                writer = writer or stack.enter_context(pa.ipc.new_file(sink, batch.schema))
                writer.write_batch(batch)
                samples += batch.num_rows
        return samples

    samples = _or_corrupt(url, write)
    if samples != counted.samples:
        raise Corrupt(f"{url} holds {samples} samples, and {counted.samples} were counted.", "Write it anew.")


def _or_corrupt(url: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (pa.ArrowException, tar.Broken) as error:
        raise Corrupt(f"{url} can't be read: {str(error).splitlines()[0]}.", "Write it anew.") from error


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Without dictionaries, which an Arrow file can't change from batch to batch."""
    columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _rows_per_batch(counted: Counted) -> int:
    return max(1, BATCH_BYTES * counted.samples // max(1, counted.unpacked))


class Parquet:
    def count(self, file: io.BufferedReader, nbytes: int) -> Counted:
        import pyarrow.parquet as pq

        metadata = pq.ParquetFile(file).metadata
        schema = metadata.schema.to_arrow_schema()
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        unpacked = sum(_unpacked(group.column(i)) for group in groups for i in range(group.num_columns))
        return Counted(metadata.num_rows, tuple(schema.names), unpacked)

    def batches(self, path: Path, counted: Counted) -> Iterator[pa.RecordBatch]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(path, memory_map=True) as file:
            yield from file.iter_batches(_rows_per_batch(counted), columns=list(counted.fields), use_threads=False)


def _unpacked(column: Any) -> int:
    """Of a column's values once decoded: what they take encoded, or by their type's width."""
    widths = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8}
    return max(int(column.total_uncompressed_size), widths.get(column.physical_type, 4) * int(column.num_values))


class ArrowFile:
    """Both of Arrow's layouts: the file (Feather), and the stream, as Hugging Face's datasets write it."""

    def count(self, file: io.BufferedReader, nbytes: int) -> Counted:
        reader = _arrow_reader(file)
        names = tuple(reader.schema.names)
        if isinstance(reader, pa.ipc.RecordBatchFileReader):
            numbers = [i for i, field in enumerate(reader.schema) if pa.types.is_primitive(field.type)]
            options = pa.ipc.IpcReadOptions(included_fields=numbers[:1] or [0], use_threads=False)  # the others stay
            reader = pa.ipc.open_file(file, options=options)
        return Counted(sum(batch.num_rows for batch in _arrow_batches(reader)), names, nbytes)

    def batches(self, path: Path, counted: Counted) -> Iterator[pa.RecordBatch]:
        with pa.memory_map(str(path)) as file:
            for batch in _arrow_batches(_arrow_reader(file)):
                yield batch.select(list(counted.fields))


def _arrow_batches(reader: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        return (reader.get_batch(i) for i in range(reader.num_record_batches))
    return iter(reader)


def _arrow_reader(file: Any) -> Any:
    try:
        return pa.ipc.open_file(file)
    except pa.ArrowInvalid:
        file.seek(0)
        return pa.ipc.open_stream(file)


class Safetensors:
    """Tensors of one length along dimension 0, which counts the samples."""

    def count(self, file: io.BufferedReader, nbytes: int) -> Counted:
        header, _ = read_header(file, nbytes)
        lengths = {name: entry.shape[0] if entry.shape else 0 for name, entry in header.items()}
        if len(set(lengths.values())) != 1:
            raise InvalidSpec(
                f"a safetensors shard holds tensors of unequal lengths: {lengths}.", "Give one row per sample in each."
            )
        odd = [name for name, entry in header.items() if entry.dtype not in NUMPY_DTYPES]
        if odd:
            raise InvalidSpec(
                f"the tensor {odd[0]!r} of a shard is {header[odd[0]].dtype}.",
                f"Store one of {', '.join(NUMPY_DTYPES)}.",
            )
        return Counted(next(iter(lengths.values())), tuple(sorted(header)), nbytes)

    def batches(self, path: Path, counted: Counted) -> Iterator[pa.RecordBatch]:
        from safetensors import safe_open

        rows = _rows_per_batch(counted)
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in counted.fields}
            for first in range(0, counted.samples, rows):
                columns = [_column(part[first : min(first + rows, counted.samples)]) for part in slices.values()]
                yield pa.RecordBatch.from_arrays(columns, names=list(slices))


NUMPY_DTYPES = ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U8")


def _column(values: Any) -> pa.Array:
    return pa.array(values) if values.ndim == 1 else pa.FixedShapeTensorArray.from_numpy_ndarray(values)


class Tar:
    """WebDataset's layout: files that share a name up to its first dot are one sample, each ending one of its fields.

    `cls` is read as a number, `txt` and `json` as text, `npy` as an array; anything else as bytes.
    """

    def count(self, file: io.BufferedReader, nbytes: int) -> Counted:
        samples = 0
        fields: set[str] = set()
        for parts in tar.samples(file):
            samples += 1
            fields |= parts.keys()
        return Counted(samples, tuple(sorted(fields)), nbytes)

    def batches(self, path: Path, counted: Counted) -> Iterator[pa.RecordBatch]:
        with path.open("rb") as file:
            rows: list[dict[str, Any]] = []
            size = 0
            for parts in tar.samples(file):
                rows.append({field: tar.value(field, file, parts[field]) for field in counted.fields if field in parts})
                size += sum(part.size for part in parts.values())
                if size >= BATCH_BYTES:
                    yield _from_rows(rows, counted.fields)
                    rows, size = [], 0
            if rows:
                yield _from_rows(rows, counted.fields)


def _from_rows(rows: list[dict[str, Any]], fields: tuple[str, ...]) -> pa.RecordBatch:
    import numpy as np

    columns = []
    for field in fields:
        values: list[Any] = [row.get(field) for row in rows]
        if field == "npy":
            if len({getattr(value, "shape", None) for value in values}) != 1:
                raise InvalidSpec(
                    "the arrays in a tar shard's .npy files have unequal shapes.",
                    "Make them equal, or store them under another ending and read them in decode=.",
                )
            columns.append(_column(np.stack(values)))
        else:
            columns.append(pa.array(values, tar.TYPES.get(field, pa.large_binary())))
    return pa.RecordBatch.from_arrays(columns, names=list(fields))


FORMATS: dict[str, Format] = {
    ".parquet": Parquet(), ".arrow": ArrowFile(), ".feather": ArrowFile(), ".safetensors": Safetensors(), ".tar": Tar(),
}  # fmt: skip
