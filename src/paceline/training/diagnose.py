"""Where a NaN or an infinity came from: the step, the samples, the first layer."""

from __future__ import annotations

from typing import Any

import torch

from paceline.errors import NonFinite
from paceline.grid import Grid
from paceline.training.program import Program
from paceline.training.seeds import seed_microbatch

NAMED_SAMPLES = 8


def diagnose(step: int, first_cell: int, batches: list[Any], program: Program, grid: Grid) -> NonFinite | None:
    """Look for the first layer where one of these cells, from `first_cell` on, turns non-finite.

    The parameters are still those of before the step, so the recomputation meets the same values.
    """
    for cell, batch in enumerate(batches, start=first_cell):
        layer = _first_bad_layer(program, grid, step, cell, batch)
        if layer is not None:
            samples = grid.cell_samples(step, cell).tolist()
            shown = ", ".join(map(str, samples[:NAMED_SAMPLES])) + (", …" if len(samples) > NAMED_SAMPLES else "")
            epoch, _ = grid.locate(step)
            return NonFinite(
                f"training became non-finite at step {step} (epoch {epoch}, microbatch {cell}, samples {shown}), "
                f"first seen in {layer}; a second computation agrees.",
                "Check those samples for NaN or extreme values; else lower the learning rate or set clip_grad_norm.",
                step=step,
                epoch=epoch,
                microbatch=cell,
                samples=samples,
                layer=layer,
            )
    return None


def _first_bad_layer(program: Program, grid: Grid, step: int, cell: int, batch: Any) -> str | None:
    """The first module whose output is not finite, "the input", "the loss", or the first parameter's gradient."""
    if not _finite(batch):
        return "the input"
    seen: list[str] = []
    hooks = [
        module.register_forward_hook(
            lambda _m, _i, output, name=name: seen.append(name) if not _finite(output) else None
        )
        for name, module in program.model.named_modules()
        if name
    ]
    program.optimizer.zero_grad(set_to_none=True)
    seed_microbatch(grid.seed, step, cell, program.device)
    try:
        loss = program.cell_loss(batch)
        if seen:
            return f"layer {seen[0]!r}"
        if not _finite(loss):
            return "the loss"
        loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    bad = [n for n, p in program.model.named_parameters() if p.grad is not None and not _finite(p.grad)]
    program.optimizer.zero_grad(set_to_none=True)
    return f"the gradient of {bad[-1]!r}" if bad else None


def _finite(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        return all(_finite(part) for part in value.values())
    return all(_finite(part) for part in value) if isinstance(value, list | tuple) else True
