"""Activation checkpointing: a unit keeps its inputs alone, and computes what is inside it again in backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.checkpoint import checkpoint

from paceline.units import choose_units, tree_of


def can_recompute(unit: torch.nn.Module) -> bool:
    """Not with batch-norm: its statistics would be taken twice."""
    return not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in unit.modules())


def recompute(unit: torch.nn.Module) -> None:
    """From now on. Loads torch's compiler at the first call."""
    forward = unit.forward
    unit.forward = lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)


def recomputed_units(model: torch.nn.Module) -> Sequence[torch.nn.Module]:
    """Of the units that the model would be cut into: all that can be computed again, but for the root's rest."""
    modules = dict(model.named_modules())
    return [modules[path] for path in choose_units(tree_of(model)) if path and can_recompute(modules[path])]
