"""Evaluation on its own fixed grid: the same values whoever computed which cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class EvalShare:
    """Cells [first, end) of the evaluation grid. passes: forwards to make, where all members must make as many.

    keeps_metrics: whether this member keeps the stateful metrics.
    """

    first: int
    end: int
    passes: int
    keeps_metrics: bool


def share_of(program: Program, source: Source, cell_size: int, place: int, world: int) -> EvalShare:
    """A member's share. Stateful metrics can't be summed: with any, the first takes the whole grid, in order."""
    cells = eval_cells(len(source), cell_size)
    if any(map(is_stateful, program.metrics.values())):
        return EvalShare(0, cells if place == 0 else 0, cells, place == 0)
    first, end = cell_share(cells, place, world)
    return EvalShare(first, end, -(-cells // world), place == 0)


@torch.no_grad()
def evaluate(
    program: Program, source: Source, cell_size: int, share: EvalShare, monitor: Monitor, lockstep: bool = False
) -> tuple[int, list[tuple[float, ...]], dict[str, float]]:
    """(first cell, one row a cell, finals). A row: samples, then sums over them of val_loss and each plain metric.

    lockstep: after its own cells, make the passes that the other members make, for nothing.
    """
    stateful = {name: m for name, m in program.metrics.items() if is_stateful(m)}
    plain = {name: m for name, m in program.metrics.items() if name not in stateful}
    cells = list(range(share.first, share.end))
    own = len(cells)
    if lockstep:
        cells += [max(share.end - 1, 0)] * (share.passes - own)
    for metric in stateful.values():
        metric.reset()
    program.model.eval()
    rows = []
    for at, (batch, count) in enumerate(_batches(source, cell_size, cells)):
        moved = to_device(batch, program.device)
        if at < own:
            rows.append(_row(program, moved, plain, stateful, count))
        else:
            _row(program, moved, {}, {}, count)
        monitor.cells += 1
    program.model.train()
    finals = {f"val_{name}": float(m.compute()) for name, m in stateful.items()} if share.keeps_metrics else {}
    return share.first, rows, finals


def _batches(source: Source, cell_size: int, cells: Sequence[int]) -> Iterator[tuple[Any, int]]:
    spans = [(cell * cell_size, min((cell + 1) * cell_size, len(source))) for cell in cells]
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
    if not hasattr(value, "__float__"):
        raise InvalidSpec(f"metric {name!r} returned a {type(value).__name__}.", "Return one number.")
    return float(value)
