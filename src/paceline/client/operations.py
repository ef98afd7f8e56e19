"""How many operations a sample takes, counted from one small forward: the same number on every machine."""

from __future__ import annotations

import contextlib
import copy
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from paceline.arrays import Arrays
from paceline.spec import TrainSpec

MOST_ELEMENTS = 50_000_000  # of parameters and buffers: a larger model's forward could keep a laptop busy
SAMPLES = 2  # batch-norm can't train on one
MOST_CALLS = 10_000  # of modules in that forward. Not a time limit: what is counted must be the same on every machine


def flop_per_sample(spec: TrainSpec, train: Any) -> float | None:
    """Floating-point operations of one sample's forward; None where that can't be told cheaply.

    Told for uncompiled modules on the CPU of at most `MOST_ELEMENTS`, on arrays, with `loss=`, and without `augment=`
    and `collate=`, which may change a sample's shape. Counted are products with weights, by the positions that each is
    applied to; any other matrix counts as used once a sample, an embedding as not at all. train: as from `normalize`.

    A copy of the model runs, in training mode, and random numbers are put back: nothing of the caller's changes. One
    that calls its modules for ever is given up after `MOST_CALLS`. One that loops without them hangs as it would in
    the caller's own hands, and ends with Ctrl-C.
    """
    plain = spec.loss is not None and spec.augment is None and spec.collate is None
    if not plain or not isinstance(train, Arrays) or len(train.columns) < 2 or not _is_small_module(spec.model):
        return None
    try:
        with unnoticed():
            return _counted(spec.model, train)
    except Exception:  # noqa: BLE001 - whatever is wrong with the model is told by the worker, where it counts
        return None


def _is_small_module(model: Any) -> bool:
    if isinstance(model, type) or not (hasattr(model, "parameters") and hasattr(model, "buffers")):
        return False
    if any(map(_is_compiled, model.modules())):
        return False  # its first forward would compile, for many seconds
    tensors = [*model.parameters(), *model.buffers()]
    return sum(t.numel() for t in tensors) <= MOST_ELEMENTS and all(t.device.type == "cpu" for t in tensors)


def _is_compiled(module: Any) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


@contextlib.contextmanager
def unnoticed() -> Iterator[None]:
    """No gradients, no warnings, and all three generators of random numbers as before."""
    import torch

    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)


def _counted(model: Any, train: Arrays) -> float:
    import torch

    copied = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    inputs = [torch.as_tensor(column[:SAMPLES]).clone() for column in train.columns[:-1]]
    samples = len(inputs[0])
    total = calls = 0

    def count(module: Any, arguments: tuple[Any, ...], output: Any) -> None:
        nonlocal total, calls
        calls += 1
        if calls > MOST_CALLS:
            raise RuntimeError(f"one forward called modules more than {MOST_CALLS} times")
        total += _flop(module, arguments, output, samples)

    for module in copied.modules():
        module.register_forward_hook(count)
    copied.train()(*inputs)
    return total / samples


def _flop(module: Any, arguments: tuple[Any, ...], output: Any, samples: int) -> int:
    """Operations of one call of this module itself, without its children's."""
    elements, positions = _products(module, arguments, output, samples)
    return 2 * elements * positions


def _products(module: Any, arguments: tuple[Any, ...], output: Any, samples: int) -> tuple[int, int]:
    """(elements of the weights, positions that they are applied to)."""
    from torch import nn
    from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

    own = sum(parameter.numel() for parameter in module.parameters(recurse=False) if parameter.dim() > 1)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return 0, 0
    if isinstance(module, nn.MultiheadAttention):  # calls a function with its child's weight, not the child
        return own + module.out_proj.weight.numel(), output[0].numel() // module.embed_dim
    if isinstance(module, nn.Linear):
        return module.weight.numel(), output.numel() // module.out_features
    if isinstance(module, _ConvTransposeNd):  # each weight meets each place of the input
        return module.weight.numel(), arguments[0].numel() // module.in_channels
    if isinstance(module, _ConvNd):
        return module.weight.numel(), output.numel() // module.out_channels
    if isinstance(module, nn.RNNBase):
        features = (module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1)
        return own, output[0].data.numel() // features  # .data: also of a PackedSequence
    return own, samples
