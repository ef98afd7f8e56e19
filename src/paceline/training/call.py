"""Calls a user's function in a process of its own: `python -m paceline.training.call CALL.json`.

What it returns leaves this process as JSON or safetensors, never as a pickle.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from paceline.errors import InvalidSpec, PacelineError
from paceline.training.packages import unpickle
from paceline.training.usererror import user_error

Form = Literal["json", "tensor", "tensors"]
FORMS: tuple[Form, ...] = ("json", "tensor", "tensors")


class CallFiles(BaseModel):
    """pickle, buffers: of (function, arguments, keyword arguments).

    result: is written, with its form as its suffix; error: where it raised.
    """

    pickle: Path
    buffers: tuple[Path, ...]
    result: Path
    error: Path

    def written(self) -> tuple[Form, Path] | None:
        """The result's form and file, where there is one."""
        found = ((form, self.result.with_suffix(f".{form}")) for form in FORMS)
        return next(((form, path) for form, path in found if path.exists()), None)


def call(files: CallFiles) -> None:
    """Unpickle, call, write the result. Raises what the function raises."""
    function, arguments, named = unpickle(files.pickle, files.buffers)
    write_result(function(*arguments, **named), files.result)


def write_result(value: Any, path: Path) -> None:
    """Write what a function returned. Raises InvalidSpec for what is neither JSON nor tensors."""
    import torch
    from safetensors.torch import save_file

    if isinstance(value, torch.Tensor):
        save_file({"value": value.detach().contiguous()}, path.with_suffix(".tensor"))
        return
    if isinstance(value, dict) and value and all(isinstance(part, torch.Tensor) for part in value.values()):
        # clones, as safetensors refuses tensors that share memory: tied weights, or slices
        tensors = {str(name): part.detach().clone().contiguous() for name, part in value.items()}
        save_file(tensors, path.with_suffix(".tensors"))
        return
    try:
        text = json.dumps(value)
    except (TypeError, ValueError) as error:
        raise InvalidSpec(
            f"the function returned a {type(value).__name__}, which can't travel as JSON: {error}.",
            "Return JSON values, a tensor, or a dict of tensors; write anything else into the output folder.",
        ) from error
    path.with_suffix(".json").write_text(text)


def main() -> int:
    files = CallFiles.model_validate_json(Path(sys.argv[1]).read_text())
    try:
        call(files)
    except Exception as error:  # noqa: BLE001 - the user's own, which travels to them whole
        told = error if isinstance(error, PacelineError) else user_error(error)
        print(told.details.get("traceback", told), file=sys.stderr)  # noqa: T201 - into the job's log
        files.error.write_text(json.dumps(told.to_json()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
