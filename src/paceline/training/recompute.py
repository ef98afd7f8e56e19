"""Activation checkpointing: a unit keeps its inputs alone, and computes what is inside it again in backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.checkpoint import checkpoint

from paceline.units import choose_units, tree_of


def recompute(unit: torch.nn.Module) -> None:
    """From now on. A unit with batch-norm stays as it is: its statistics would be taken twice."""
    if any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in unit.modules()):
        return
    forward = unit.forward
    unit.forward = lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)


@contextmanager
def recomputing(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block, all units that the model would be cut into are computed again, but for the root's rest."""
    modules = dict(model.named_modules())
    units = [modules[path] for path in choose_units(tree_of(model)) if path]
    before = [unit.__dict__.get("forward") for unit in units]  # most have their class's alone
    try:
        for unit in units:
            recompute(unit)
        yield
    finally:
        for unit, forward in zip(units, before, strict=True):
            unit.__dict__.pop("forward", None)
            if forward is not None:
                unit.forward = forward
