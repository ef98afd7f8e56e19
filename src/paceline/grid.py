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


def scaled_share(share: tuple[int, int], num_cells: int, full_cells: int) -> tuple[int, int]:
    """A share of the full grid's cells, on a smaller last batch's grid of `num_cells` cells."""
    first, end = share
    return first * num_cells // full_cells, end * num_cells // full_cells
