"""A model's fingerprint: the same for models that cost the same to train, whatever their weights.

It is a hash of the module tree, the shapes and types of parameters, buffers and samples, the code of the user's own
modules and functions, and how the optimizer is made. A change that leaves all of these alike, such as of a function
that forward calls, goes unseen; what was measured before is then refined by training.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import types
from collections.abc import Iterator
from typing import Any

from paceline.arrays import Arrays
from paceline.spec import TrainSpec

COSTLESS = ("lr", "betas", "eps", "weight_decay", "dampening", "alpha", "rho")  # settings of optimizers
MOST_DEPTH = 4


def fingerprint(spec: TrainSpec, train: Any) -> str | None:
    """None where the model or the shape of its samples is known to the nodes alone. train: as from `normalize`."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(spec.model, torch.nn.Module) or not isinstance(train, Arrays):
        return None
    parts: list[Any] = [(str(column.dtype), tuple(column.shape[1:])) for column in train.columns]
    parts += _model(spec.model)
    parts += [_code(part) for part in (spec.loss, spec.training_step, spec.augment, spec.collate, spec.lr_schedule)]
    parts += [_optimizer(spec.optimizer)]
    parts += [(name, _code(metric)) for name, metric in sorted(spec.metrics.items())]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _model(model: Any) -> Iterator[Any]:
    for name, module in model.named_modules():
        settings = "" if _is_users(type(module)) else module.extra_repr()  # the user's own may hold anything
        yield name, _named(type(module)), settings, _code(type(module))
    for name, parameter in model.named_parameters():
        yield name, tuple(parameter.shape), str(parameter.dtype), parameter.requires_grad
    for name, buffer in model.named_buffers():
        yield name, tuple(buffer.shape), str(buffer.dtype)


def _optimizer(factory: Any) -> Any:
    """Settings that decide what a step costs: all but those that only change what it computes."""
    if not isinstance(factory, functools.partial):
        return _code(factory)
    plain = (bool, int, str, type(None))
    settings = [
        (name, value if isinstance(value, plain) else bool(value) if isinstance(value, float) else type(value).__name__)
        for name, value in sorted(factory.keywords.items())
        if name not in COSTLESS
    ]
    return _code(factory.func), settings


def _named(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def _is_users(kind: type) -> bool:
    return kind.__module__.split(".")[0] != "torch"


def _code(thing: Any, depth: int = 0) -> Any:
    """What a function or class does: its name, and its bytecode with that of the functions inside."""
    if isinstance(thing, types.FunctionType):
        return _named(thing), _bytecode(thing.__code__)
    if isinstance(thing, type):
        methods = [_code(part) for _, part in sorted(vars(thing).items()) if isinstance(part, types.FunctionType)]
        return (_named(thing), methods if _is_users(thing) else [])
    if isinstance(thing, functools.partial) and depth < MOST_DEPTH:
        return _code(thing.func, depth + 1), sorted(thing.keywords)
    return _named(thing) if thing is None or hasattr(thing, "__qualname__") else _code(type(thing), depth + 1)


def _bytecode(code: types.CodeType) -> Any:
    inside = [_bytecode(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    plain = [repr(part) for part in code.co_consts if isinstance(part, bool | int | float | str)]
    return code.co_code, code.co_names, plain, inside
