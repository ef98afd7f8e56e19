"""Before anything is sent: what can't be pickled, by its attribute path, and what was captured by accident."""

from __future__ import annotations

import inspect
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from paceline.errors import InvalidSpec, Unpicklable

LARGE_CAPTURE_BYTES = 1_000_000
MAX_DEPTH = 20

Dumps = Callable[[Any], bytes]


def unpicklable(value: Any, field: str, cause: Exception, dumps: Dumps) -> Unpicklable:
    """The error for a value that can't be pickled: the deepest part that is at fault, by its path."""
    path, part = _deepest(value, field, dumps, MAX_DEPTH, set())
    path = path.removeprefix(".")
    return Unpicklable(
        f"{path} ({type(part).__module__}.{type(part).__qualname__}) can't be sent to a worker: {cause}.",
        "Make it where it is used (lazily, on the worker), drop it in __getstate__, or pass a callable that builds it.",
        path=path,
    )


def _deepest(value: Any, path: str, dumps: Dumps, depth: int, seen: set[int]) -> tuple[str, Any]:
    seen.add(id(value))
    for name, part in _parts(value) if depth else ():
        if id(part) not in seen and not _packs(part, dumps):
            return _deepest(part, path + name, dumps, depth - 1, seen)
    return path, value


def _packs(value: Any, dumps: Dumps) -> bool:
    try:
        dumps(value)
    except Exception:  # noqa: BLE001 - any failure is the answer "no"
        return False
    return True


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a pickle of `value` would contain, with how to write it: (".name", part)."""
    if isinstance(value, dict):
        yield from ((f"[{key!r}]" if not str(key).isidentifier() else f".{key}", part) for key, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{at}]", part) for at, part in enumerate(value))
    elif isinstance(value, types.FunctionType):
        yield from ((f" (captures {name})", part) for name, part in captured(value))
        defaults = {name: parameter.default for name, parameter in inspect.signature(value).parameters.items()}
        yield from ((f" (default of {name})", part) for name, part in defaults.items())
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif hasattr(value, "func") and hasattr(value, "keywords"):  # functools.partial
        yield ".func", value.func
        yield from ((f".args[{at}]", part) for at, part in enumerate(value.args))
        yield from ((f".{name}", part) for name, part in value.keywords.items())
    elif hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType):
        for name, part in vars(value).items():
            if name in ("_modules", "_parameters", "_buffers"):  # a torch module: child.weight, not _modules.child
                yield from ((f".{child}", grandpart) for child, grandpart in part.items())
            else:
                yield f".{name}", part


def captured(function: Any) -> Iterator[tuple[str, Any]]:
    """The variables that a function carries along: its closure and the globals that it uses."""
    try:
        variables = inspect.getclosurevars(function)
    except (TypeError, ValueError):
        return
    yield from variables.nonlocals.items()
    yield from ((name, part) for name, part in variables.globals.items() if not isinstance(part, types.ModuleType))


def warn_of_large_captures(function: Any, field: str) -> None:
    """Warn where a function carries megabytes along, which is seldom meant."""
    if not isinstance(function, types.FunctionType):
        return
    for name, part in captured(function):
        size = getattr(part, "nbytes", 0)
        if isinstance(size, int) and size > LARGE_CAPTURE_BYTES:
            warnings.warn(
                f"{field} captures {name}, {size / 1e6:.1f} MB, and takes it along to every worker. "
                f"If it is data, give it as train_data or val_data.",
                stacklevel=4,
            )


def check_model(model: Any) -> None:
    """Refuse a model that has nothing to train. A builder is checked where it runs."""
    parameters = getattr(model, "parameters", None)
    if parameters is None or isinstance(model, type):
        if not callable(model):
            raise InvalidSpec(
                f"model= is a {type(model).__name__}.", "Give an nn.Module, or a callable that builds one."
            )
        return
    if not any(parameter.requires_grad for parameter in parameters()):
        raise InvalidSpec("the model has no parameters that require gradients.", "Give a model that can be trained.")
