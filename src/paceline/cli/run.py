"""`paceline run` and `paceline output`: a script that works under torchrun, and what it left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli.common import JobId, Json, connect
from paceline.cli.output import console, pairs, show
from paceline.cli.train import Local, naming
from paceline.errors import Conflict

if TYPE_CHECKING:
    from rich.text import Text

    from paceline.client.job import Job

Command = Annotated[
    list[str],
    typer.Argument(metavar="SCRIPT ARGS...", help="The script and its arguments, or `-m MODULE ARGS`; behind a `--`."),
]
OutputFolder = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FOLDER", help="Where the output folder goes. By default, ID-output."),
]


Rank = Annotated[int, typer.Option(min=0, help="Of which rank; those of one node share a folder.")]
NEVER = "never"


def run(
    command: Command,
    workers: Annotated[int, typer.Option(min=1, help="How many ranks run the script.")] = 1,
    min_workers: Annotated[int | None, typer.Option(min=1, help="Start with as few, where no more are free.")] = None,
    workdir: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="The project: what git does not ignore in it travels.")
    ] = Path(),
    requirements: Annotated[
        str | None, typer.Option(help="A file in the project. By default, requirements.txt, where there is one.")
    ] = None,
    outputs: Annotated[str, typer.Option(help="The project's folder whose files are kept, of each rank.")] = "outputs",
    max_restarts: Annotated[int, typer.Option(min=0, help="How often all ranks start anew after a failure.")] = 0,
    hang_timeout: Annotated[
        str, typer.Option(metavar="TIME", help="How long a script may make no progress, e.g. 2h; or `never`.")
    ] = "30m",
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A variable for the script; may be repeated.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="OMP_NUM_THREADS, and cores, of each rank.")] = 1,
    name: Annotated[str | None, typer.Option(help="The job's name.")] = None,
    priority: Annotated[int, typer.Option(help="Jobs of higher priority start first.")] = 0,
    output: OutputFolder = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return once the master has the job.")] = False,
    local: Local = False,
    json: Json = False,
) -> None:
    """Run a script that works under torchrun, as it is, and fetch its output folder."""
    if detach and (local or output):
        raise typer.BadParameter("--detach goes with neither --local nor --output; fetch with `paceline output`.")
    _refuse_existing(output)
    from paceline.script import ScriptSpec
    from paceline.spec import Resources

    spec = ScriptSpec(
        command=tuple(command),
        workdir=workdir,
        requirements=requirements,
        outputs=outputs,
        min_workers=min_workers,
        max_restarts=max_restarts,
        hang_timeout=None if hang_timeout == NEVER else hang_timeout,
        env=dict(_variable(text) for text in env or ()),
        threads=threads,
        resources=Resources(workers=workers),
        name=name,
        priority=priority,
    )
    with connect(local) as client:
        job = client.submit_script(spec)
        if detach:
            show(json, job.info(), f"{job.id} is with the master. See `paceline job {job.id}`.")
            return
        with naming(job, local):
            if not json:
                console().print(f"job      {job.id}")
                job.watch()
            document, text = _fetch(job, output)
    show(json, document, text)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"--env {text} is not NAME=VALUE.")
    return name, value


def _refuse_existing(folder: Path | None) -> None:
    """Before the script runs, what would fail after it."""
    if folder is not None and folder.exists():
        raise typer.BadParameter(f"--output {folder} is there already; name a folder that is not.")


def output(job_id: JobId, output: OutputFolder = None, rank: Rank = 0, json: Json = False) -> None:
    """Fetch the output folder of a script that has ended, one that failed or was cancelled too."""
    from paceline.client.events import ENDED

    _refuse_existing(output)
    with connect() as client:
        job = client.job(job_id)
        state = job.state
        if state not in ENDED:
            raise Conflict(f"job {job_id} is {state} and has no output yet.", f"Watch it: `paceline logs {job_id} -f`.")
        document, text = _fetch(job, output, partial=True, rank=rank)
    show(json, document, text)


def _fetch(job: Job, folder: Path | None, partial: bool = False, rank: int = 0) -> tuple[dict[str, Any], Text]:
    """Wait for the script's end and fetch its output; what to tell, for programs and for people."""
    where = job.output(folder or Path(f"{job.id}-output"), partial=partial, rank=rank)
    info = job.info()
    document = {"id": job.id, "state": info["state"], "output": str(where.resolve()) if where else None}
    last = {name: value for name, value in (info["history"] or [{}])[-1].items() if name != "step"}
    told = [("ran", f"{info['train_seconds']:.1f} s, in {info['attempt']} attempt(s)"), ("output", where or "none")]
    return {**document, "values": last, "seconds": info["train_seconds"]}, pairs(told)
