"""A worker's data: opened once, fingerprinted, and read ahead of the compute."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from paceline.arrays import Arrays
from paceline.errors import InvalidSpec
from paceline.grid import derive_seed
from paceline.training.seeds import sample_seed, seed_everything

PREFETCHED_BATCHES = 4
CHUNK_BATCHES = 8
PREFETCHED_CHUNKS = 2
FINGERPRINTED_SAMPLES = 16
ENDING_BOUND_S = 1.0  # between a killed process' last word, a broken pipe, and its end


class LostReader(Exception):
    """A data loader process was killed: not the user's error, and not to be told to them as one."""


@dataclass(frozen=True)
class CellRequest:
    """One batch to read. epoch: seeds the samples; -1 for evaluation. indices: shape (n,)."""

    epoch: int
    indices: NDArray[np.int64]


class Source(Protocol):
    """Opened data. `stream` yields one batch for each request, in order, read ahead in the background."""

    def __len__(self) -> int: ...

    def stream(self, requests: Iterable[CellRequest]) -> Iterator[Any]: ...

    def sample(self, index: int) -> Any: ...


def open_source(
    data: Any,
    seed: int,
    augment: Callable[[Any], Any] | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
) -> Source:
    """Open what the spec gave: arrays, a Dataset, or a builder of one. Raises InvalidSpec on anything else."""
    if isinstance(data, type) or (callable(data) and not hasattr(data, "__getitem__")):
        seed_everything(derive_seed(seed, "data"))
        data = data()
    plain = augment is None and collate is None
    if plain and isinstance(data, Arrays):
        return TensorSource([torch.as_tensor(column) for column in data.columns])
    if plain and type(data) is TensorDataset:
        return TensorSource(list(data.tensors))
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise InvalidSpec(
            f"the data builder returned a {type(data).__name__}, which has no __len__ and __getitem__.",
            "Return a map-style torch Dataset.",
        )
    return DatasetSource(data, seed, augment, collate or default_collate)


def check_sizes(train: Source, val: Source | None, batch_size: int) -> None:
    """Raise InvalidSpec where there is nothing to read, or less than a batch."""
    if len(train) == 0:
        raise InvalidSpec("the training data is empty.", "Check the dataset's builder and its paths.")
    if val is not None and len(val) == 0:
        raise InvalidSpec("the validation data is empty.", "Check it, or leave val_data out.")
    if batch_size > len(train):
        raise InvalidSpec(
            f"batch_size={batch_size} is larger than the training data's {len(train)} samples.",
            f"Set batch_size to at most {len(train)}.",
        )


class TensorSource:
    """Tensors in memory (or mapped): a batch is one gather per column, done by a background thread.

    Each cell is gathered into fresh, aligned memory: kernels may give other bits for other alignments.
    """

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._tensors = tensors

    def __len__(self) -> int:
        return len(self._tensors[0])

    def sample(self, index: int) -> Any:
        return tuple(tensor[index] for tensor in self._tensors)

    def stream(self, requests: Iterable[CellRequest]) -> Iterator[Any]:
        return _read_ahead(self._batch(request) for request in requests)

    def _batch(self, request: CellRequest) -> tuple[torch.Tensor, ...]:
        index = torch.from_numpy(request.indices)
        return tuple(tensor.index_select(0, index) for tensor in self._tensors)


class DatasetSource:
    """A user's map-style Dataset, read by torch's DataLoader processes, each sample under its own seed."""

    def __init__(
        self,
        dataset: Any,
        seed: int,
        augment: Callable[[Any], Any] | None,
        collate: Callable[[list[Any]], Any],
    ) -> None:
        self._seeded = _Seeded(dataset, seed, augment)
        self._collate = collate

    def __len__(self) -> int:
        return len(self._seeded.dataset)

    def sample(self, index: int) -> Any:
        return self._seeded[(-1, index)]

    def stream(self, requests: Iterable[CellRequest]) -> Iterator[Any]:
        keys = ([(request.epoch, int(index)) for index in request.indices] for request in requests)
        batches = iter(
            DataLoader(
                self._seeded,
                batch_sampler=keys,
                collate_fn=self._collate,
                num_workers=max(1, min(4, (os.cpu_count() or 2) - 1)),
                prefetch_factor=PREFETCHED_BATCHES,
                multiprocessing_context="fork" if hasattr(os, "fork") else None,
            )
        )
        return _or_lost(batches, multiprocessing.active_children())


def _or_lost(batches: Iterator[Any], processes: list[BaseProcess]) -> Iterator[Any]:
    """The batches. Raises LostReader where reading failed because one of the processes was killed."""
    try:
        yield from batches
    except (RuntimeError, OSError, EOFError) as error:  # what torch and the broken pipe between them raise
        number = _signal_that_ended(processes)
        if number is None:
            raise
        raise LostReader(f"a data loader process was ended by signal {number}") from error


def _signal_that_ended(processes: list[BaseProcess]) -> int | None:
    """Of one of the processes; None where, within the bound, none was ended by one."""
    deadline = time.monotonic() + ENDING_BOUND_S
    while time.monotonic() < deadline:
        for process in processes:
            if process.exitcode is not None and process.exitcode < 0:
                return -process.exitcode
        time.sleep(0.01)
    return None


def lost_reader(error: Exception) -> bool:
    """Whether a data loader process was killed, in contrast to an exception of the user's code in it.

    torch has no class of its own for this, and its signal handler raises it wherever the main thread is by then.
    """
    by_handler = isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")
    return by_handler or isinstance(error, LostReader)


class _Seeded(Dataset[Any]):
    """Loads and augments a sample under seeds of (seed, epoch, index), in whichever process that happens."""

    def __init__(self, dataset: Any, seed: int, augment: Callable[[Any], Any] | None) -> None:
        self.dataset = dataset
        self._seed = seed
        self._augment = augment

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        seed_everything(sample_seed(self._seed, epoch, index))
        sample = self.dataset[index]
        return sample if self._augment is None or epoch < 0 else self._augment(sample)


def _read_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """Run `batches` in a thread, a few ahead. An exception there is raised here, in its place.

    They are handed over in chunks: waking the other thread for each would cost a small model a tenth of its time.
    """
    ready: queue.Queue[tuple[list[Any], Exception | None]] = queue.Queue(maxsize=PREFETCHED_CHUNKS)
    closed = threading.Event()

    def put(item: tuple[list[Any], Exception | None]) -> bool:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def read() -> None:
        chunk: list[Any] = []
        try:
            for batch in batches:
                chunk.append(batch)
                if len(chunk) == CHUNK_BATCHES:
                    if not put((chunk, None)):
                        return
                    chunk = []
            put((chunk, StopIteration()))
        except Exception as error:  # noqa: BLE001 - handed to the consumer, which raises it
            put((chunk, error))

    threading.Thread(target=read, name="read-ahead", daemon=True).start()
    try:
        while True:
            chunk, end = ready.get()
            yield from chunk
            if isinstance(end, StopIteration):
                return
            if end is not None:
                raise end
    finally:
        closed.set()


def fingerprint(source: Source) -> str:
    """Length and a hash of sampled items: equal on all workers that built the same data."""
    total = hashlib.sha256(str(len(source)).encode())
    for index in sorted({i * (len(source) - 1) // (FINGERPRINTED_SAMPLES - 1) for i in range(FINGERPRINTED_SAMPLES)}):
        _hash_into(total, source.sample(index))
    return f"{len(source)}:{total.hexdigest()[:32]}"


def _hash_into(total: hashlib._Hash, item: Any) -> None:
    """Add an item's contents; an object of an unknown kind counts by its type alone, its repr may hold an address."""
    total.update(type(item).__name__.encode())
    if isinstance(item, torch.Tensor):
        total.update(item.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(item, np.ndarray | np.generic):
        total.update(np.ascontiguousarray(item).tobytes())
    elif isinstance(item, str | int | float | bool | bytes | None):
        total.update(repr(item).encode())
    elif isinstance(item, dict):
        for key in sorted(item, key=str):
            total.update(str(key).encode())
            _hash_into(total, item[key])
    elif isinstance(item, list | tuple):
        for part in item:
            _hash_into(total, part)


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor in it on `device`."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        moved = [to_device(part, device) for part in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch
