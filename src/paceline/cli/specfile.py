"""The FILE of `train` and `plan`: a Python file that defines `spec`."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any

from paceline.errors import InvalidSpec, PacelineError, UserCodeError
from paceline.spec import TrainSpec
from paceline.stop import MaxEpochs


def load_spec(path: Path) -> TrainSpec:
    """Run the file and take its `spec`. Raises UserCodeError with the user's traceback, and InvalidSpec."""
    module = _import(path.resolve())
    found = getattr(module, "spec", None)
    if found is None:
        raise InvalidSpec(f"{path} defines no `spec`.", "Add `spec = paceline.TrainSpec(model=…, train_data=…, …)`.")
    if not isinstance(found, TrainSpec):
        raise InvalidSpec(
            f"`spec` in {path} is a {type(found).__name__}, not a TrainSpec.", "Make it a paceline.TrainSpec."
        )
    return found


def _import(path: Path) -> Any:
    """A real module under the file's own name, so that its functions and classes travel to the workers by value."""
    name = path.stem.replace(".", "_")
    _refuse_taken(name, path)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # for the modules beside it
    import_spec = importlib.util.spec_from_file_location(name, path)
    if import_spec is None or import_spec.loader is None:
        raise InvalidSpec(f"{path.name} is not a Python file.", "Give a .py file that defines `spec`.")
    module = importlib.util.module_from_spec(import_spec)
    sys.modules[name] = module
    try:
        import_spec.loader.exec_module(module)
    except PacelineError:
        raise  # says by itself what is wrong and what to do
    except (Exception, SystemExit) as error:
        raise _user_error(error, path) from error
    return module


def _refuse_taken(name: str, path: Path) -> None:
    """A file named like a module in use would take its place."""
    known = sys.modules.get(name) or importlib.util.find_spec(name)
    origin = getattr(known, "__file__", None) or getattr(known, "origin", None)
    if known is not None and (origin is None or Path(origin).resolve() != path):
        raise InvalidSpec(f"{path.name} has the name of the installed module {name!r}.", "Rename the file.")


def _user_error(error: BaseException, path: Path) -> UserCodeError:
    """The traceback from the user's file on, without the frames that lead there."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next((at for at, frame in enumerate(frames) if frame.filename == str(path)), len(frames))
    head = ["Traceback (most recent call last):\n", *traceback.format_list(frames[first:])] if frames[first:] else []
    return UserCodeError(
        f"{path.name} raised {type(error).__name__}: {error}",
        "Its traceback follows.",
        type=type(error).__name__,
        traceback="".join([*head, *traceback.format_exception_only(error)]),
    )


def overridden(
    spec: TrainSpec,
    *,
    workers: int | None = None,
    max_cost: float | None = None,
    max_epochs: int | None = None,
    **fields: Any,
) -> TrainSpec:
    """The spec with the given fields changed, and checked again; None leaves a field as it is.

    max_epochs bounds the training further: whatever else the spec's stop condition says.
    """
    changes = {name: value for name, value in fields.items() if value is not None}
    limits = {name: value for name, value in (("workers", workers), ("max_cost", max_cost)) if value is not None}
    if limits:
        changes["resources"] = spec.resources.model_copy(update=limits)
    if max_epochs is not None:
        changes["stop"] = spec.stop | MaxEpochs(max_epochs)
    if not changes:
        return spec
    return TrainSpec(**{name: getattr(spec, name) for name in TrainSpec.model_fields} | changes)
