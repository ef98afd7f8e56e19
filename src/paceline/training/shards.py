"""Data in shards, as a worker reads it: batches from mapped Arrow files, in the grid's order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import default_collate

from paceline.errors import InvalidSpec
from paceline.grid import ShardOrder
from paceline.shards.cache import Prefetcher, ShardCache
from paceline.shards.data import Place, ShardedData
from paceline.training.data import CellRequest, in_processes, read_ahead

Columns = dict[str, Any]  # by field: an array of shape (n, …), or a list of n values that are no numbers


class ShardedSource:
    """A background thread reads; where the user's code makes samples of what it read, other processes run that."""

    def __init__(
        self,
        data: ShardedData,
        seed: int,
        augment: Callable[[Any], Any] | None,
        collate: Callable[[list[Any]], Any] | None,
        place: Place,
    ) -> None:
        self._data, self._seed, self._augment, self._collate = data, seed, augment, collate
        self._order = data.order
        self._cache = ShardCache(data, place)
        self._prefetcher = Prefetcher(self._cache)
        self._window: tuple[int, int] | None = None  # (epoch, window) that is being read
        self._reading = threading.Lock()  # a stream that was given up may still read its last batches

    @property
    def order(self) -> ShardOrder:
        return self._order

    def __len__(self) -> int:
        return int(self._order.starts[-1])

    def telling(self, samples: int) -> Iterator[Any]:
        """The index, and samples of the shard that is needed first anyway."""
        yield [(shard.url, *shard.version, shard.counted.samples) for shard in self._data.shards]
        at = self._order.samples(self._seed, 0, 0, min(samples, len(self)))
        yield {name: list(column) for name, column in self._read(CellRequest(0, at)).items()}

    def stream(self, requests: Iterable[CellRequest]) -> Iterator[Any]:
        if self._data.decode is None and self._augment is None and self._collate is None:
            return read_ahead(self._tensors(self._read(request)) for request in requests)
        load = self._data.decode or self._sample
        keys = read_ahead(list(self._keys(request)) for request in requests)
        return in_processes(keys, load, self._seed, self._augment, self._collate or default_collate)

    def _keys(self, request: CellRequest) -> Iterator[tuple[int, int, Columns]]:
        """(epoch, index, fields of the sample), for each sample of the request."""
        columns = self._read(request)
        for at, index in enumerate(request.indices):
            yield request.epoch, int(index), {name: column[at] for name, column in columns.items()}

    def _read(self, request: CellRequest) -> Columns:
        indices = request.indices
        shards = np.searchsorted(self._order.starts, indices, side="right") - 1
        used = np.unique(shards)
        with self._reading:
            self._look_ahead(request.epoch, shards)
            parts = [self._cache.take(int(s), indices[shards == s] - self._order.starts[s]) for s in used]
        places = np.concatenate([np.flatnonzero(shards == s) for s in used])
        table = pa.concat_tables(parts).take(np.argsort(places))
        return {name: _values(table.column(name)) for name in table.column_names}

    def _look_ahead(self, epoch: int, shards: NDArray[np.int64]) -> None:
        """Have the rest of this window fetched, and the next; let go of the others."""
        last = int(shards[-1])
        if epoch < 0:  # an evaluation goes through the shards as they are listed
            window, soon = last, list(range(last, min(last + 2, len(self._order.lengths))))
        else:
            window = self._order.window_of(self._seed, epoch, last)
            near = [self._order.shards(self._seed, epoch, window + ahead) for ahead in (0, 1)]
            soon = [int(shard) for part in near for shard in part]
        if (epoch, window) != self._window:
            self._window = epoch, window
            self._cache.forget_others({*soon, *map(int, shards)})
            self._prefetcher.want(soon)

    def _tensors(self, columns: Columns) -> Any:
        return _mapped(_as_tensor, self._sample_of(columns, numbers_of=1))

    def _sample(self, columns: Columns) -> Any:
        return self._sample_of(columns, numbers_of=0)

    def _sample_of(self, columns: Columns, numbers_of: int) -> Any:
        """(inputs…, target), or a dict of all fields. numbers_of: dimensions of a field that holds plain numbers."""
        target = self._data.target
        if target is None:
            return columns
        odd = [name for name, column in columns.items() if not isinstance(column, np.ndarray | np.generic)]
        if odd:
            raise InvalidSpec(
                f"the field {odd[0]!r} holds no numbers, or arrays of unequal lengths.",
                "Leave it out by fields=, or make samples of it by decode=.",
            )
        arrays = {name: np.asarray(column) for name, column in columns.items() if name != target}
        numbers = [array.astype(np.float32) for array in arrays.values() if array.ndim == numbers_of]
        inputs = [array for array in arrays.values() if array.ndim > numbers_of]
        if numbers:
            inputs.insert(0, np.stack(numbers, axis=-1))
        return (*map(_single, inputs), _target(np.asarray(columns[target])))


def _single(array: NDArray[Any]) -> NDArray[Any]:
    """torch's default for real numbers."""
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _target(array: NDArray[Any]) -> NDArray[Any]:
    """As torch's losses want them, like those of arrays."""
    return array.astype(np.int64) if array.dtype.kind in "iu" else _single(array)


def _values(column: pa.ChunkedArray) -> Any:
    """An array where the field holds numbers, or arrays of numbers of one shape; else a list."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    kind = array.type
    if isinstance(kind, pa.FixedShapeTensorType):
        return array.to_numpy_ndarray()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _rows(array)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return array.to_numpy(zero_copy_only=False)
    return array.to_pylist()


def _rows(array: Any) -> Any:
    values = array.flatten()
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)) or array.null_count:
        return array.to_pylist()
    lengths = array.value_lengths().to_numpy(zero_copy_only=False)
    flat = values.to_numpy(zero_copy_only=False)
    if len(set(lengths.tolist())) == 1:
        return flat.reshape(len(array), -1)
    return np.split(flat, np.cumsum(lengths)[:-1])


def _as_tensor(value: Any) -> Any:
    """In fresh, aligned memory, as kernels may give other bits for other alignments."""
    return torch.tensor(value) if isinstance(value, np.ndarray) else value


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, dict):
        return {name: change(part) for name, part in value.items()}
    return tuple(change(part) for part in value)
