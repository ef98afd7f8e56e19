"""Exact synchronous SGD on the grid: one optimizer step whose result does not depend on who computes which cell."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from paceline.errors import NonFinite
from paceline.grid import scaled_share
from paceline.messages.from_worker import Evidence
from paceline.training.batchnorm import BatchNormPool
from paceline.training.data import to_device
from paceline.training.diagnose import diagnose
from paceline.training.exchange import GradientExchange
from paceline.training.gradients import CellAccumulator
from paceline.training.group import PendingRows, WorkerGroup
from paceline.training.mode import Course
from paceline.training.monitor import Monitor
from paceline.training.program import Program
from paceline.training.sanity import Sanity, SuspectStep, evidence_of
from paceline.training.seeds import seed_microbatch

# Columns of a cell's row; the sender's norm, and what it takes for a usual one, stand in its first row.
LOSS, NORM, USUAL, STATISTICS = 0, 1, 2, 3


class ExactTrainer:
    """Runs steps for one group. `clip`: bound of the full gradient's norm."""

    def __init__(
        self,
        program: Program,
        course: Course,
        group: WorkerGroup,
        pool: BatchNormPool,
        clip: float | None,
        monitor: Monitor,
        sanity: Sanity,
    ) -> None:
        self._program = program
        self._grid = course.grid
        self._group = group
        self.place = group.place
        self._pool = pool
        self._clip = clip
        self._total_samples = course.total_samples
        self._monitor = monitor
        self._exchange = GradientExchange(program.parameters, group)
        self._sanity = sanity

    def close(self) -> None:
        """Take no further part in the model."""
        self._exchange.close()

    def cells(self, step: int, place: int) -> range:
        """The cells of a step whose batches the member at `place` takes, in order."""
        return range(*scaled_share(self._group.shares[place], self._grid.num_cells(step), self._grid.num_cells(0)))

    def step(self, step: int, batches: Iterator[Any], trusted: bool = False) -> float:
        """Do one step on the next batches of this worker's share; return the batch's mean loss.

        Raises SuspectStep, on all members alike, before anything is committed that can't be right. trusted: it was
        found right already, however large it is.
        """
        num_cells = self._grid.num_cells(step)
        shares = [scaled_share(share, num_cells, self._grid.num_cells(0)) for share in self._group.shares]
        share = shares[self._group.place]
        self._exchange.begin(shares, num_cells)
        rows, _ = self._cells(step, share, batches, self._exchange)
        self._exchange.send_rest()
        rows[:1, NORM], rows[:1, USUAL] = self._exchange.norm(), self._sanity.usual
        counts = [end - first for first, end in shares]
        everyone = PendingRows(self._group, rows, counts)
        gradients = self._exchange.total()  # shared while the rows are: to wait for these first would be one wait more
        rows = everyone.all()
        norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
        if self._group.world == 1:
            rows[:1, NORM] = norm
        self._judge(rows, counts, float(norm), trusted)
        self._apply(step, gradients, norm)
        self._pool.end_step(rows[:, STATISTICS:])
        return float(sum(rows[:, LOSS].tolist()))

    def _cells(
        self, step: int, share: tuple[int, int], batches: Iterator[Any], into: GradientExchange | CellAccumulator
    ) -> tuple[torch.Tensor, list[Any]]:
        """Forward and backward of a share: (a row for each cell, shape (cells, STATISTICS + pool's width); batches)."""
        first, end = share
        rows = torch.zeros(end - first, STATISTICS + self._pool.width, dtype=torch.float64)
        kept: list[Any] = []
        self._pool.begin_step()
        try:
            for cell in range(first, end):
                with self._monitor.doing("data"):
                    kept.append(to_device(next(batches), self._program.device))
                if cell == end - 1 and isinstance(into, GradientExchange):
                    into.last_cell(cell)
                with self._monitor.doing("compute"):
                    rows[cell - first, LOSS] = self._cell(step, cell, kept[-1])
                    rows[cell - first, STATISTICS:] = self._pool.take_row()
                    into.cell_done(cell)
                self._monitor.cells += 1
        finally:
            self._pool.end_step(None)
        return rows, kept

    def _judge(self, rows: torch.Tensor, counts: list[int], norm: float, trusted: bool) -> None:
        parts = rows[:, [LOSS, NORM]].split(counts)
        sums = [part.sum(0).tolist() for part in parts]
        losses, norms = [loss for loss, _ in sums], [norm for _, norm in sums]
        places, reason = self._sanity.suspects(losses, norms, float(rows[:, USUAL].max()), trusted)
        if not places and math.isfinite(norm):
            return
        own = self._group.place in places
        evidence = evidence_of(sums[self._group.place][0], self._exchange.partials()) if own else None
        raise SuspectStep(places, reason or f"the sum's norm is {norm:g}", evidence)

    def check(self, step: int, place: int, batches: Iterator[Any]) -> tuple[Evidence, NonFinite | None]:
        """Compute again what the member at `place` computed of this step, and change nothing."""
        cells = self.cells(step, place)
        share = cells.start, cells.stop
        again = CellAccumulator(self._program.parameters, share, self._grid.num_cells(step))
        rows, kept = self._cells(step, share, batches, again)
        evidence = evidence_of(float(rows[:, LOSS].sum()), again.partials())
        if math.isfinite(evidence.loss) and math.isfinite(evidence.norm):
            return evidence, None
        return evidence, diagnose(step, share[0], kept, self._program, self._grid)

    def _cell(self, step: int, cell: int, batch: Any) -> float:
        """Forward and backward of one cell; its weight is its part of the batch's samples."""
        seed_microbatch(self._grid.seed, step, cell, self._program.device)
        weight = self._grid.cell_len(step, cell) / self._grid.batch_len(step)
        loss = self._program.cell_loss(batch)
        (loss * weight).backward()
        return float(loss.detach()) * weight

    def _apply(self, step: int, gradients: list[torch.Tensor | None], norm: torch.Tensor) -> None:
        program = self._program
        for parameter, gradient in zip(program.parameters, gradients, strict=True):
            parameter.grad = gradient
        if self._clip is not None:
            torch.nn.utils.clip_grads_with_norm_(program.parameters, self._clip, norm)
        program.set_lr(self._grid.samples_seen(step), self._total_samples)
        program.optimizer.step()
        program.optimizer.zero_grad(set_to_none=True)
