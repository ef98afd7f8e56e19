"""Evaluation on its own fixed grid: the same values whoever computed which cell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from paceline.errors import InvalidSpec
from paceline.training.data import CellRequest, Source, to_device
from paceline.training.monitor import Monitor
from paceline.training.program import Program


def is_stateful(metric: Any) -> bool:
    """A torchmetrics-style object, with `update` and `compute`, rather than `fn(outputs, targets)`."""
    return hasattr(metric, "update") and hasattr(metric, "compute")


def eval_cells(num_samples: int, cell_size: int) -> int:
    return -(-num_samples // cell_size)


def cell_share(num_cells: int, place: int, world: int) -> tuple[int, int]:
    """A member's [first, end) of the evaluation grid."""
    return place * num_cells // world, (place + 1) * num_cells // world


@torch.no_grad()
def evaluate(
    program: Program, source: Source, cell_size: int, place: int, world: int, monitor: Monitor
) -> tuple[int, list[tuple[float, ...]], dict[str, float]]:
    """(first cell, one row a cell, finals). A row: samples, then sums over them of val_loss and each plain metric.

    Stateful metrics can't be summed: where there are any, the first member takes the whole grid, in order.
    """
    stateful = {name: m for name, m in program.metrics.items() if is_stateful(m)}
    plain = {name: m for name, m in program.metrics.items() if name not in stateful}
    cells = eval_cells(len(source), cell_size)
    first, end = cell_share(cells, place, world) if not stateful else (0, cells if place == 0 else 0)
    for metric in stateful.values():
        metric.reset()
    program.model.eval()
    rows = []
    for batch, count in _batches(source, cell_size, first, end):
        rows.append(_row(program, to_device(batch, program.device), plain, stateful, count))
        monitor.cells += 1
    program.model.train()
    return first, rows, {f"val_{name}": float(m.compute()) for name, m in stateful.items()} if place == 0 else {}


def _batches(source: Source, cell_size: int, first: int, end: int) -> Iterator[tuple[Any, int]]:
    spans = [(cell * cell_size, min((cell + 1) * cell_size, len(source))) for cell in range(first, end)]
    batches = source.stream(CellRequest(-1, np.arange(start, stop, dtype=np.int64)) for start, stop in spans)
    return ((batch, stop - start) for batch, (start, stop) in zip(batches, spans, strict=True))


def _row(
    program: Program, batch: Any, plain: dict[str, Any], stateful: dict[str, Any], count: int
) -> tuple[float, ...]:
    outputs, targets, loss = program.evaluated(batch)
    for metric in stateful.values():
        metric.update(outputs, targets)
    values = [_number(name, metric(outputs, targets)) for name, metric in plain.items()]
    return (count, count * float(loss), *(count * value for value in values))


def _number(name: str, value: Any) -> float:
    if getattr(value, "numel", lambda: 1)() != 1:
        raise InvalidSpec(
            f"metric {name!r} returned a tensor of shape {tuple(value.shape)}.", "Return one number: its mean."
        )
    return float(value)
