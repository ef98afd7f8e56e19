"""The trained model in the user's folder: safetensors, with its description as JSON beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli.output import pairs, values
from paceline.errors import PacelineError
from paceline.explain import counted

if TYPE_CHECKING:
    from rich.text import Text

    from paceline.client.job import Job

Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="MODEL.safetensors",
        help="Where the model goes, with its description as .json beside it. By default, ID.safetensors.",
    ),
]


def check_output(path: Path | None) -> None:
    """Refuse before the training what would fail after it."""
    path = path or Path("model.safetensors")
    if path.suffix != ".safetensors":
        raise typer.BadParameter(f"--output {path} does not end in .safetensors, the format of the model.")
    folder = next(parent for parent in path.resolve().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise PacelineError(f"cannot write into {folder}.", "Choose another --output, or change its permissions.")


def deliver(job: Job, path: Path | None) -> tuple[dict[str, Any], Text]:
    """Wait for the model, write it and its description; return what to tell, for programs and for people.

    Raises the job's own error where it failed.
    """
    if job.wait() != "SUCCEEDED":
        job.result()  # raises what went wrong
    from paceline.transfer import disk_error

    path = path or Path(f"{job.id}.safetensors")
    description = path.with_suffix(".json")
    try:
        found = job.fetch(path)
        path = Path(found.pop("path"))
        description.write_text(json.dumps(found, indent=2) + "\n")
    except OSError as error:
        raise disk_error(error, path) from error
    document = {name: value for name, value in found.items() if name not in ("job_id", "blob", "files")}
    where = {"model": str(path.resolve()), "description": str(description.resolve())}
    return {"id": job.id, "state": "SUCCEEDED", **document, **where}, _summary(found, path, description)


def _summary(found: dict[str, Any], path: Path, description: Path) -> Text:
    workers = found["plan"]["workers"]
    nodes = {worker["node_id"] for worker in workers}
    who = f"{counted(len(workers), 'worker')} on {counted(len(nodes), 'node')}"
    return pairs(
        [
            ("stopped", found["stop_reason"]),
            ("values", f"{values(_metrics(found))}  at step {found['step']}"),
            ("trained", f"{found['train_seconds']:.1f} s, by {who}"),
            ("digest", found["digest"]),
            ("repeats", reproducible(found)),
            ("model", f"{path}  ({found['nbytes']:,} bytes; described in {description})"),
        ]
    )


def _metrics(found: dict[str, Any]) -> dict[str, float | None]:
    """The values of the evaluation at the delivered model's step."""
    at_step = (evaluation for evaluation in reversed(found["history"]) if evaluation["step"] == found["step"])
    return next(at_step, {})


def reproducible(found: dict[str, Any]) -> str:
    if found["reproducible"]:
        return "bit for bit, on any number of workers of this hardware class"
    return f"not bit for bit: {found['irreproducible_because']}"
