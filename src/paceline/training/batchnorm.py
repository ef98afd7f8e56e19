"""Batch-norm on a grid: each cell normalises by itself; the running statistics take one update a step.

The update uses the mean and variance of the whole batch, pooled over the cells in grid order, so that it does not
depend on who computed which cell. Other buffers that forward changes can't be pooled and are refused by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from paceline.errors import InvalidSpec


class BatchNormPool:
    """Collects each cell's batch statistics and applies the pooled update.

    A cell's row holds, for each layer of C channels, the count n, then C sums of n * mean and C sums of
    n * (biased variance + mean²).
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        for name, module in model.named_modules():
            if isinstance(module, SyncBatchNorm):
                raise InvalidSpec(f"{name} is a SyncBatchNorm.", "Use BatchNorm; its statistics are pooled anyway.")
        self._buffers = [_Buffers(layer) for layer in self._layers]
        for buffers in self._buffers:
            buffers.layer.register_forward_hook(buffers.record)
        owned = {id(buffer) for layer in self._layers for buffer in layer.buffers(recurse=False)}
        self._model = model
        self._owned = owned
        self.note_other_buffers()

    @property
    def width(self) -> int:
        return sum(buffers.width for buffers in self._buffers)

    def begin_step(self) -> None:
        """Divert the layers' own updates into scratch buffers."""
        for buffers in self._buffers:
            buffers.divert()

    def take_row(self) -> torch.Tensor:
        """The finished cell's row, float64 on the CPU, shape (width,)."""
        if not self._buffers:
            return torch.zeros(0, dtype=torch.float64)
        return torch.cat([buffers.take() for buffers in self._buffers])

    def end_step(self, rows: torch.Tensor | None) -> None:
        """Restore the real buffers and update them from all cells' rows, shape (cells, width); None to only restore."""
        at = 0
        for buffers in self._buffers:
            buffers.restore()
            if rows is not None:
                buffers.update(rows[:, at : at + buffers.width])
            at += buffers.width

    def note_other_buffers(self) -> None:
        """What the buffers are now is right: the model was built, or its state was copied in."""
        named = self._model.named_buffers()
        self._others = {n: (b, b._version) for n, b in named if id(b) not in self._owned}

    def refuse_other_updates(self) -> None:
        """Raise InvalidSpec where forward changed a buffer that is no batch-norm statistic."""
        now = dict(self._model.named_buffers())
        for name, (buffer, version) in self._others.items():
            if buffer._version != version or not _same(buffer, now.get(name)):
                raise InvalidSpec(
                    f"forward changes the buffer {name!r}; its value would depend on how the batch is cut.",
                    "Compute it from parameters, or keep it constant in training.",
                )


def _same(buffer: torch.Tensor, now: torch.Tensor | None) -> bool:
    """Whether the model still holds the buffer, or another tensor with its values in its place."""
    return now is buffer or (now is not None and torch.equal(buffer, now))


class _Buffers:
    """One layer's running statistics: the real ones, and scratch ones that receive a single cell's."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.width = 1 + 2 * layer.num_features
        self._real: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        self._momentum: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._sums = torch.zeros(self.width, dtype=torch.float64)

    def divert(self) -> None:
        layer = self.layer
        self._real = (layer.running_mean, layer.running_var, layer.num_batches_tracked)
        self._momentum = layer.momentum
        layer.momentum = 1.0  # the scratch buffers then hold exactly one batch's statistics
        layer.running_mean = torch.zeros_like(layer.running_mean)
        layer.running_var = torch.zeros_like(layer.running_var)
        layer.num_batches_tracked = torch.zeros_like(layer.num_batches_tracked)

    def restore(self) -> None:
        if self._real is not None:
            self.layer.running_mean, self.layer.running_var, self.layer.num_batches_tracked = self._real
            self.layer.momentum = self._momentum
            self._real = None
        self._reset()

    def record(self, layer: Any, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        """Forward hook: add this call's statistics; a layer that is called twice pools both calls."""
        if not layer.training or self._real is None:
            return
        channels = layer.num_features
        count = inputs[0].numel() / channels
        mean = layer.running_mean.cpu().double()
        biased = layer.running_var.cpu().double() * ((count - 1) / count)
        self._sums[0] += count
        self._sums[1 : 1 + channels] += count * mean
        self._sums[1 + channels :] += count * (biased + mean * mean)

    def take(self) -> torch.Tensor:
        row = self._sums
        self._reset()
        return row

    def update(self, rows: torch.Tensor) -> None:
        """One running update from the pooled statistics; the unbiased variance, as torch keeps it."""
        sums = torch.zeros(self.width, dtype=torch.float64)
        for row in rows:  # in grid order
            sums += row
        count, channels = float(sums[0]), self.layer.num_features
        if count == 0:
            return
        mean = sums[1 : 1 + channels] / count
        biased = (sums[1 + channels :] / count - mean * mean).clamp_(min=0)
        layer = self.layer
        layer.num_batches_tracked += 1
        momentum = layer.momentum if layer.momentum is not None else 1.0 / float(layer.num_batches_tracked)
        layer.running_mean.lerp_(mean.to(layer.running_mean), momentum)
        layer.running_var.lerp_((biased * (count / max(count - 1, 1))).to(layer.running_var), momentum)
