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


class CallFiles(BaseModel):
    """pickle, buffers: of (function, arguments, keyword arguments). result: is written; error: where it raised."""

    pickle: Path
    buffers: tuple[Path, ...]
    result: Path
    error: Path

    def form(self) -> Form | None:
        """Of the result; None where none was written."""
        note = self.result.with_suffix(".form")
        return note.read_text() if note.exists() else None  # type: ignore[return-value] - written below


def call(files: CallFiles) -> None:
    """Unpickle, call, write the result. Raises what the function raises."""
    function, arguments, named = unpickle(files.pickle, files.buffers)
    form = write_result(function(*arguments, **named), files.result)
    files.result.with_suffix(".form").write_text(form)


def write_result(value: Any, path: Path) -> Form:
    """Write what a function returned; return the form. Raises InvalidSpec for what is neither JSON nor tensors."""
    import torch
    from safetensors.torch import save_file

    if isinstance(value, torch.Tensor):
        save_file({"value": value.detach().contiguous()}, path)
        return "tensor"
    if isinstance(value, dict) and value and all(isinstance(part, torch.Tensor) for part in value.values()):
        # clones, as safetensors refuses tensors that share memory: tied weights, or slices
        save_file({str(name): part.detach().clone().contiguous() for name, part in value.items()}, path)
        return "tensors"
    try:
        path.write_text(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise InvalidSpec(
            f"the function returned a {type(value).__name__}, which can't travel as JSON: {error}.",
            "Return JSON values, a tensor, or a dict of tensors; write anything else into the output folder.",
        ) from error
    return "json"


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
