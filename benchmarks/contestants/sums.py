"""The ways to sum a step's gradients that reduction.py compares, each with one face: `gradients(step)`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import steady
import torch
import torch.distributed as dist
from fixed_point import FixedPointExchange

from paceline.grid import Grid
from paceline.messages.to_worker import Group
from paceline.shares import split_evenly
from paceline.training.exchange import GradientExchange
from paceline.training.group import PendingRows, WorkerGroup
from paceline.training.monitor import Monitor

Data = tuple[torch.Tensor, torch.Tensor]
Gradients = Sequence[torch.Tensor | None]


class Sum(Protocol):
    """redone: steps that were computed twice."""

    redone: int

    def gradients(self, step: int) -> tuple[float, Gradients]:
        """The batch's mean loss (of this worker's part, where the method does not share it) and gradients."""


class Cells:
    """Forward and backward of the parts of a batch. parts: how many it is cut into."""

    def __init__(self, model: torch.nn.Module, data: Data, batch: int, parts: int) -> None:
        self.model, self._data, self.parts = model, data, parts
        self._grid = Grid(len(data[0]), batch, parts, drop_last=True, seed=0)

    def backward(self, step: int, cell: int, dtype: torch.dtype = torch.float32) -> float:
        index = torch.from_numpy(self._grid.cell_samples(step, cell))
        x, y = self._data
        loss = steady.loss(self.model(x[index].to(dtype)), y[index]) / self.parts
        loss.backward()
        return loss.item()


class Tree:
    """Ours: float sums along a fixed tree."""

    redone = 0

    def __init__(self, cells: Cells, workers: WorkerGroup) -> None:
        self._cells, self._workers = cells, workers
        self._exchange = GradientExchange(list(cells.model.parameters()), workers)

    def gradients(self, step: int) -> tuple[float, Gradients]:
        first, end = self._workers.shares[self._workers.place]
        losses = torch.empty(end - first, 1, dtype=torch.float64)
        self._exchange.begin(self._workers.shares, self._cells.parts)
        for cell in range(first, end):
            if cell == end - 1:
                self._exchange.last_cell(cell)
            losses[cell - first] = self._cells.backward(step, cell)
            self._exchange.cell_done(cell)
        self._exchange.send_rest()
        everyone = PendingRows(self._workers, losses, [end - first for first, end in self._workers.shares])
        total = self._exchange.total()
        return float(everyone.all().sum()), total


class FixedPoint:
    """Integer sums under a common scale; dtype: int64 or int32."""

    def __init__(self, cells: Cells, workers: WorkerGroup, dtype: torch.dtype) -> None:
        self._cells, self._workers = cells, workers
        self._parameters = list(cells.model.parameters())
        self._exchange = FixedPointExchange(self._parameters, workers, cells.parts, dtype)
        self.redone = 0

    def gradients(self, step: int) -> tuple[float, Gradients]:
        while True:
            rows = self._all_cells(step)
            total = self._exchange.total(rows[:, 1:])
            if total is not None:
                return float(rows[:, 0].sum()), total
            self.redone += 1

    def _all_cells(self, step: int) -> torch.Tensor:
        """Loss and largest gradient of each parameter, for each cell of the batch."""
        first, end = self._workers.shares[self._workers.place]
        rows = torch.empty(end - first, 1 + len(self._parameters), dtype=torch.float64)
        self._exchange.begin(first)
        for cell in range(first, end):
            if cell == end - 1:
                self._exchange.last_cell(cell)
            rows[cell - first, 0] = self._cells.backward(step, cell)
            rows[cell - first, 1:] = self._exchange.cell_done(cell)
        self._exchange.send_rest()
        return PendingRows(self._workers, rows, [end - first for first, end in self._workers.shares]).all()


class Ddp:
    """Ordinary DDP: each rank takes its part of the batch in one pass, and knows the loss of that alone."""

    redone = 0

    def __init__(self, model: torch.nn.Module, data: Data, batch: int, place: int, world: int) -> None:
        self._place = place
        self._cells = Cells(torch.nn.parallel.DistributedDataParallel(model), data, batch, world)
        self._cells.parts = 1  # DDP takes the mean over the ranks itself
        self._parameters = list(model.parameters())

    def gradients(self, step: int) -> tuple[float, Gradients]:
        for parameter in self._parameters:
            parameter.grad = None
        loss = self._cells.backward(step, self._place)
        return loss, [parameter.grad for parameter in self._parameters]


def make(method: str, model: torch.nn.Module, data: Data, batch: int, place: int, world: int, port: int) -> Sum:
    """One worker's end of a method; the workers find each other at the store on `port`."""
    if method == "ddp":
        dist.init_process_group("gloo", store=dist.TCPStore("127.0.0.1", port), rank=place, world_size=world)
        return Ddp(model, data, batch, place, world)
    cells, workers = Cells(model, data, batch, steady.MICROBATCHES), join(place, world, port)
    dtypes: dict[str, Any] = {"int64": torch.int64, "int32": torch.int32}
    return Tree(cells, workers) if method == "tree" else FixedPoint(cells, workers, dtypes[method])


def join(place: int, world: int, port: int) -> WorkerGroup:
    """Paceline's own group, made without a master."""
    shares = tuple(split_evenly(steady.MICROBATCHES, world))
    group = Group(key="reduction", host="127.0.0.1", port=port, members=tuple(range(world)), shares=shares)
    return WorkerGroup(group, place, torch.device("cpu"), Monitor(), threading.Event())
