"""The grid: which samples each step consumes and how a batch is cut, from the spec alone.

Nothing here knows of workers. An epoch's order is a permutation seeded by (seed, epoch); a step takes the next
`batch_size` positions of it; a batch is cut into cells (microbatches) of `cell_size` samples. A last, smaller batch
has fewer cells, the last of which may be smaller. So the same spec names the same samples on any machine.

Data in shards has an order of its own, `ShardOrder`, by the shards' lengths: they belong to the spec as the data does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

DEFAULT_MICROBATCHES = 8
MOST_COST = 0.05  # of a step's time, that cutting its batch may add where the number is chosen
CELL_FLOP = 40e6  # one more cell in operations that take as long: a pass's dispatch, whatever the model
CELL_FLOP_PER_PARAMETER = 50.0  # … and one more gradient, written, read and summed


@dataclass(frozen=True, eq=False)
class ShardOrder:
    """An epoch's order in which few shards are in use at once: the samples of `window` of them are shuffled together.

    lengths: samples of each shard; indices count through the shards as they are listed. An epoch takes the shards in
    an order fixed by (seed, epoch), `window` at a time, and a window's samples in one fixed by its place in it too. The
    shuffle buffer of streaming loaders, made a function of the position alone.
    """

    lengths: tuple[int, ...]
    window: int

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The index of each shard's first sample, and the number of all: shape (shards + 1,)."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)]).astype(np.int64)

    @property
    def windows(self) -> int:
        return -(-len(self.lengths) // self.window)

    def samples(self, seed: int, epoch: int, first: int, end: int) -> NDArray[np.int64]:
        """Indices at the positions [first, end) of the epoch's order."""
        _, ends = _shards_of_epoch(self, seed, epoch)
        parts = []
        while first < end:
            window = int(np.searchsorted(ends, first, side="right"))
            start, stop = int(ends[window - 1]) if window else 0, min(end, int(ends[window]))
            parts.append(_window_order(self, seed, epoch, window)[first - start : stop - start])
            first = stop
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def shards(self, seed: int, epoch: int, window: int) -> NDArray[np.int64]:
        """The shards of a window of this epoch, or of the one after it."""
        if window >= self.windows:
            epoch, window = epoch + 1, window - self.windows
        order, _ = _shards_of_epoch(self, seed, epoch)
        return order[window * self.window : (window + 1) * self.window]

    def window_of(self, seed: int, epoch: int, shard: int) -> int:
        """The window of the epoch that takes this shard."""
        order, _ = _shards_of_epoch(self, seed, epoch)
        return int(np.flatnonzero(order == shard)[0]) // self.window


@lru_cache(maxsize=4)
def _shards_of_epoch(order: ShardOrder, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(the shards in this epoch's order, the position at which each window ends)."""
    generator = np.random.Generator(np.random.Philox(derive_seed(seed, "shards", epoch)))
    shards = generator.permutation(len(order.lengths))
    filled = np.cumsum(np.asarray(order.lengths, np.int64)[shards])
    lasts = np.minimum(np.arange(1, order.windows + 1) * order.window, len(shards)) - 1
    return shards, filled[lasts]


@lru_cache(maxsize=4)
def _window_order(order: ShardOrder, seed: int, epoch: int, window: int) -> NDArray[np.int64]:
    starts = order.starts
    shards = order.shards(seed, epoch, window)
    samples = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in shards])
    return np.random.Generator(np.random.Philox(derive_seed(seed, "window", epoch, window))).permutation(samples)


@dataclass(frozen=True)
class Grid:
    """num_samples: of the training data. batch_size, microbatches, drop_last, seed: the spec's.

    order: of data in shards; whoever only counts samples may do without.
    """

    num_samples: int
    batch_size: int
    microbatches: int
    drop_last: bool
    seed: int
    order: ShardOrder | None = None

    @property
    def cell_size(self) -> int:
        return -(-self.batch_size // self.microbatches)

    @property
    def steps_per_epoch(self) -> int:
        whole, rest = divmod(self.num_samples, self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    @property
    def samples_per_epoch(self) -> int:
        return min(self.num_samples, self.steps_per_epoch * self.batch_size)

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, position of the step's first sample in the epoch's order); steps count from 0."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return epoch, index * self.batch_size

    def batch_len(self, step: int) -> int:
        """Samples of this step's batch."""
        _, start = self.locate(step)
        return min(self.batch_size, self.samples_per_epoch - start)

    def num_cells(self, step: int) -> int:
        return -(-self.batch_len(step) // self.cell_size)

    def cell_len(self, step: int, cell: int) -> int:
        return min(self.cell_size, self.batch_len(step) - cell * self.cell_size)

    def cell_samples(self, step: int, cell: int) -> NDArray[np.int64]:
        """Indices into the training data that this cell consumes, in order; shape (cell_len,)."""
        epoch, start = self.locate(step)
        first = start + cell * self.cell_size
        end = first + self.cell_len(step, cell)
        if self.order is not None:
            return self.order.samples(self.seed, epoch, first, end)
        return epoch_order(self.num_samples, self.seed, epoch)[first:end]

    def samples_seen(self, steps: int) -> int:
        """Samples that the first `steps` steps consume together."""
        epoch, start = self.locate(steps)
        return epoch * self.samples_per_epoch + start


@lru_cache(maxsize=4)
def epoch_order(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The epoch's order: a permutation of range(num_samples), fixed by (seed, epoch)."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, "order", epoch))).permutation(num_samples)


def derive_seed(seed: int, *path: int | str) -> int:
    """A 63-bit seed for one purpose: independent streams for different paths, the same on every machine."""
    text = "/".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def default_microbatches(batch_size: int, flop_per_sample: float | None, parameters: int | None) -> int:
    """Microbatches of a batch where the spec names no number: so many that cutting costs at most `MOST_COST` of a step.

    The largest power of two up to `DEFAULT_MICROBATCHES` and `batch_size`; that bound itself where a count is None.
    Of the spec alone: neither nodes nor clocks, whose answer would differ between two machines. flop_per_sample: of
    one forward; a backward takes twice that. parameters: that are trained.

    A cell's cost is fitted to processor time per step of 1, 2, 4 and 8 cells on one core of 2023 (`benchmarks/grid.py`
    repeats it): in operations at each model's own rate it was 80 million for a CNN of 0.82 million parameters, 87 for
    a transformer of 0.42 million, 50 for an MLP of 0.27 million.
    """
    most = min(DEFAULT_MICROBATCHES, batch_size)
    if flop_per_sample is None or parameters is None:
        return most
    allowed = MOST_COST * 3 * flop_per_sample * batch_size
    cell = CELL_FLOP + CELL_FLOP_PER_PARAMETER * parameters
    chosen = 1
    while 2 * chosen <= most and (2 * chosen - 1) * cell <= allowed:
        chosen *= 2
    return chosen


def scaled_share(share: tuple[int, int], num_cells: int, full_cells: int) -> tuple[int, int]:
    """A share of the full grid's cells, on a smaller last batch's grid of `num_cells` cells."""
    first, end = share
    return first * num_cells // full_cells, end * num_cells // full_cells
