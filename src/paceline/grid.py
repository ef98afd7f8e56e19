"""The grid: which samples each step consumes and how a batch is cut, from the spec alone.

Nothing here knows of workers. An epoch's order is a permutation seeded by (seed, epoch); a step takes the next
`batch_size` positions of it; a batch is cut into cells (microbatches) of `cell_size` samples. A last, smaller batch
has fewer cells, the last of which may be smaller. So the same spec names the same samples on any machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

DEFAULT_MICROBATCHES = 8
MOST_COST = 0.05  # of a step's time, that cutting its batch may add where the number is chosen
CELL_FLOP = 40e6  # one more cell in operations that take as long: a pass's dispatch, whatever the model
CELL_FLOP_PER_PARAMETER = 50.0  # … and one more gradient, written, read and summed


@dataclass(frozen=True)
class Grid:
    """num_samples: of the training data. batch_size, microbatches, drop_last, seed: the spec's."""

    num_samples: int
    batch_size: int
    microbatches: int
    drop_last: bool
    seed: int

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
        return epoch_order(self.num_samples, self.seed, epoch)[first : first + self.cell_len(step, cell)]

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
