"""Synchronous SGD on the grid with a sharded model: the steps of exact training, within float error.

Every member has to make the same number of passes, for each gathers all units from everyone. Who has fewer cells than
others repeats one of its own, or the first, with the weight 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from paceline.errors import NonFinite
from paceline.grid import scaled_share
from paceline.training.batchnorm import BatchNormPool
from paceline.training.data import to_device
from paceline.training.mode import Course
from paceline.training.monitor import Monitor
from paceline.training.program import Program
from paceline.training.seeds import seed_microbatch
from paceline.training.sharded.group import ShardGroup

LOSS, STATISTICS = 0, 1  # columns of a cell's row


class ShardedTrainer:
    """Runs steps for one group. clip: bound of the full gradient's norm."""

    def __init__(
        self,
        program: Program,
        course: Course,
        group: ShardGroup,
        pool: BatchNormPool,
        clip: float | None,
        monitor: Monitor,
    ) -> None:
        self._program = program
        self._grid = course.grid
        self._total_samples = course.total_samples
        self._group = group
        self._pool = pool
        self._clip = clip
        self._monitor = monitor
        self.place = group.place

    def cells(self, step: int, place: int) -> Sequence[int]:
        """A member's own cells, and those that it repeats: as many as the member with the most has."""
        shares = self._shares(step)
        passes = max(end - first for first, end in shares)
        first, end = shares[place]
        return [*range(first, end), *[max(first, end - 1) if end > first else 0] * (passes - (end - first))]

    def _shares(self, step: int) -> list[tuple[int, int]]:
        grid = self._grid
        return [scaled_share(share, grid.num_cells(step), grid.num_cells(0)) for share in self._group.shares]

    def step(self, step: int, batches: Iterator[Any], trusted: bool = False) -> float:
        """Do one step; return the batch's mean loss. Raises NonFinite on all members alike, and LostPeer."""
        rows = self._group.add_up(self._passes(step, batches))  # of each cell, one member's row is not zero
        loss = float(sum(rows[:, LOSS].tolist()))
        norm = self._norm()
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise self._non_finite(step, rows, norm)
        self._apply(step, norm)
        self._pool.end_step(rows[:, STATISTICS:])
        return loss

    def _passes(self, step: int, batches: Iterator[Any]) -> torch.Tensor:
        """Forward and backward of this member's cells: their rows among zeros, shape (cells, STATISTICS + width)."""
        first, end = self._shares(step)[self.place]
        rows = torch.zeros(self._grid.num_cells(step), STATISTICS + self._pool.width, dtype=torch.float64)
        self._pool.begin_step()
        try:
            for at, cell in enumerate(self.cells(step, self.place)):
                own = at < end - first
                with self._monitor.doing("data"):
                    batch = to_device(next(batches), self._program.device)
                with self._monitor.doing("compute"):
                    loss = self._pass(step, cell, batch, own)
                statistics = self._pool.take_row()
                if own:
                    rows[cell, LOSS], rows[cell, STATISTICS:] = loss, statistics
                self._monitor.cells += 1
        finally:
            self._pool.end_step(None)
        return rows

    def _pass(self, step: int, cell: int, batch: Any, own: bool) -> float:
        seed_microbatch(self._grid.seed, step, cell, self._program.device)
        weight = self._grid.cell_len(step, cell) / self._grid.batch_len(step) if own else 0.0
        loss = self._program.cell_loss(batch)
        (loss * weight).backward()
        return float(loss.detach()) * weight

    def _shards(self) -> list[torch.Tensor]:
        """This member's part of the gradients."""
        gradients = [p.grad for p in self._program.parameters if p.grad is not None]
        return [g.to_local() if isinstance(g, DTensor) else g for g in gradients]

    def _norm(self) -> float:
        """Of the whole gradient, the same on all members."""
        shards = [shard for shard in self._shards() if shard.numel()]
        squares = sum(float(norm) ** 2 for norm in torch._foreach_norm(shards)) if shards else 0.0
        return math.sqrt(float(self._group.add_up(torch.tensor([squares], dtype=torch.float64))))

    def _apply(self, step: int, norm: float) -> None:
        program = self._program
        if self._clip is not None and norm > self._clip:
            torch._foreach_mul_(self._shards(), self._clip / (norm + 1e-6))  # as torch.nn.utils does
        program.set_lr(self._grid.samples_seen(step), self._total_samples)
        program.optimizer.step()
        program.optimizer.zero_grad(set_to_none=True)

    def _non_finite(self, step: int, rows: torch.Tensor, norm: float) -> NonFinite:
        bad = [cell for cell, loss in enumerate(rows[:, LOSS].tolist()) if not math.isfinite(loss)]
        samples = [int(i) for cell in bad[:1] for i in self._grid.cell_samples(step, cell)]
        where = f"the loss of microbatch {bad[0]} (samples {samples[:8]})" if bad else f"the gradient's norm ({norm:g})"
        return NonFinite(
            f"training became non-finite at step {step}: {where} is not finite.",
            "Check those samples, lower the learning rate or set clip_grad_norm=1.0.",
            step=step,
        )
