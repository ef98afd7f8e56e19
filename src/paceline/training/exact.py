"""Exact synchronous SGD on the grid: one optimizer step whose result does not depend on who computes which cell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from paceline.grid import Grid, scaled_share
from paceline.training.batchnorm import BatchNormPool
from paceline.training.data import to_device
from paceline.training.diagnose import NonFiniteStep
from paceline.training.exchange import GradientExchange
from paceline.training.group import WorkerGroup
from paceline.training.monitor import Monitor
from paceline.training.program import Program
from paceline.training.seeds import seed_microbatch


class ExactTrainer:
    """Runs steps for one group. `clip`: bound of the full gradient's norm. `total_samples`: for the schedule."""

    def __init__(
        self,
        program: Program,
        grid: Grid,
        group: WorkerGroup,
        pool: BatchNormPool,
        clip: float | None,
        total_samples: int | None,
        monitor: Monitor,
    ) -> None:
        self._program = program
        self._grid = grid
        self._group = group
        self._pool = pool
        self._clip = clip
        self._total_samples = total_samples
        self._monitor = monitor
        self._exchange = GradientExchange(program.parameters, group)

    def close(self) -> None:
        """Take no further part in the model."""
        self._exchange.close()

    def step(self, step: int, batches: Iterator[Any]) -> float:
        """Do one step on the next batches of this worker's share; return the batch's mean loss.

        Raises NonFiniteStep before anything is committed where loss or gradient is not finite.
        """
        grid, program = self._grid, self._program
        num_cells = grid.num_cells(step)
        shares = [scaled_share(share, num_cells, grid.num_cells(0)) for share in self._group.shares]
        first, end = shares[self._group.place]
        self._exchange.begin(shares, num_cells)
        rows = torch.empty(end - first, 1 + self._pool.width, dtype=torch.float64)
        kept: list[Any] = []
        self._pool.begin_step()
        try:
            for cell in range(first, end):
                with self._monitor.doing("data"):
                    batch = to_device(next(batches), program.device)
                kept.append(batch)
                if cell == end - 1:
                    self._exchange.last_cell(cell)
                with self._monitor.doing("compute"):
                    rows[cell - first, 0] = self._cell(step, cell, batch)
                rows[cell - first, 1:] = self._pool.take_row()
                self._exchange.cell_done(cell)
                self._monitor.cells += 1
        finally:
            self._pool.end_step(None)
        self._exchange.send_rest()
        rows = self._group.gather_rows(rows, [end - first for first, end in shares])
        gradients = self._exchange.total()
        loss = float(sum(rows[:, 0].tolist()))
        norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
        if not (torch.isfinite(norm) and -float("inf") < loss < float("inf")):
            raise NonFiniteStep(step, loss, first, kept)
        self._apply(step, gradients, norm)
        self._pool.end_step(rows[:, 1:])
        return loss

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
