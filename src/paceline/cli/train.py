"""`paceline train` and `paceline plan`: hand over what a file defines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli.common import Json, connect
from paceline.cli.delivery import Output, check_output, deliver
from paceline.cli.jobs import state_of
from paceline.cli.output import console, show
from paceline.errors import PacelineError

if TYPE_CHECKING:
    from paceline.client.job import Job

File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", exists=True, dir_okay=False, help="A Python file that defines `spec`, a paceline.TrainSpec."
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Train on exactly this many workers.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Samples of one optimizer step, over all workers.")]
Deadline = Annotated[
    str | None, typer.Option(help="Refuse the job if it is predicted to end later: seconds, or e.g. 10m.")
]
MaxCost = Annotated[
    float | None, typer.Option(min=0, help="Refuse the job if it is predicted to cost more, by the nodes' prices.")
]
Local = Annotated[bool, typer.Option("--local", help="Use an embedded master on this machine, for this command only.")]


def train(
    file: File,
    workers: Workers = None,
    batch_size: BatchSize = None,
    max_epochs: Annotated[int | None, typer.Option(min=1, help="Stop after this many epochs at the latest.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The job's seed.")] = None,
    name: Annotated[str | None, typer.Option(help="The job's name.")] = None,
    priority: Annotated[int | None, typer.Option(help="Jobs of higher priority start first.")] = None,
    deadline: Deadline = None,
    max_cost: MaxCost = None,
    output: Output = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return once the master has the job.")] = False,
    local: Local = False,
    json: Json = False,
) -> None:
    """Train what FILE defines and fetch the model. Options override the file's spec."""
    if detach and (local or output):
        raise typer.BadParameter("--detach goes with neither --local nor --output; fetch with `paceline model`.")
    check_output(output)
    with connect(local) as client:
        from paceline.cli.specfile import load_spec, overridden

        spec = overridden(
            load_spec(file),
            workers=workers,
            batch_size=batch_size,
            max_epochs=max_epochs,
            seed=seed,
            name=name,
            priority=priority,
            deadline=deadline,
            max_cost=max_cost,
        )
        job = client.submit(spec)
        if detach:
            found = job.info()
            show(json, found, f"{job.id} is with the master: {state_of(found)}. See `paceline job {job.id}`.")
            return
        with naming(job, local):
            if not json:
                found = job.info()
                console().print(f"job      {job.id}")
                if found["queue_place"]:
                    console().print(f"waits    {state_of(found)}: {found['queue_reason']}", soft_wrap=True)
                job.watch()
            document, text = deliver(job, output)
    show(json, document, text)


@contextlib.contextmanager
def naming(job: Job, local: bool) -> Iterator[None]:
    """An error says whose it is; and Ctrl-C, which ends only the watching, what becomes of the job."""
    try:
        yield
    except PacelineError as error:
        error.details.setdefault("job_id", job.id)
        raise
    except KeyboardInterrupt:
        fate = f"goes on. See `paceline job {job.id}`, or end it: `paceline cancel {job.id}`"
        console(stderr=True).print(f"{job.id} {'ends with its embedded master' if local else fate}.", soft_wrap=True)
        raise


def plan(
    file: File,
    workers: Workers = None,
    batch_size: BatchSize = None,
    deadline: Deadline = None,
    max_cost: MaxCost = None,
    local: Local = False,
    json: Json = False,
) -> None:
    """Show which nodes would train what FILE defines, what that would take, and why. Trains nothing."""
    with connect(local) as client:
        from paceline.cli.specfile import load_spec, overridden

        spec = overridden(load_spec(file), workers=workers, batch_size=batch_size, deadline=deadline, max_cost=max_cost)
        found = client.plan(spec=spec)
    show(json, found.document(), found.explain())
