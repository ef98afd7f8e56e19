"""Commands on jobs that the master already has."""

from __future__ import annotations

import shlex
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli.common import JobId, Json, connect
from paceline.cli.delivery import Output, check_output, deliver, reproducible
from paceline.cli.output import pairs, rows, show, span, values
from paceline.errors import Conflict, Expired
from paceline.explain import counted
from paceline.script import ScriptOptions

if TYPE_CHECKING:
    from paceline.client.client import Client
    from paceline.spec import TrainOptions

ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
CANCEL_WITHIN_S = 60.0


def jobs(json: Json = False) -> None:
    """List all users' jobs, newest first."""
    with connect() as client:
        found = client.jobs()
    if not found:
        show(json, found, "no jobs yet; `paceline train FILE` makes one.")
        return
    now = time.time()
    columns = ("id", "name", "user", "state", "step", "trained", "age", "last values")
    show(json, found, rows(columns, [_line(job, now) for job in found]))


def _line(job: dict[str, Any], now: float) -> tuple[Any, ...]:
    last = values(job["history"][-1]) if job["history"] else ""
    return (
        job["id"],
        job["name"] or "",
        job["user"],
        state_of(job),
        job["step"],
        span(job["train_seconds"]) if job["ended_at"] else "",
        span(now - job["created_at"]),
        job["error"]["fact"] if job["error"] else last,
    )


def state_of(job: dict[str, Any]) -> str:
    """Its state, and for one that waits its place and expected start."""
    if not job["queue_place"]:
        return str(job["state"])
    starts = job["expected_start_s"]
    return f"{job['state']}, place {job['queue_place']}" + ("" if starts is None else f", starts within {span(starts)}")


def job(job_id: JobId, json: Json = False) -> None:
    """Show one job: its state, values, error, plan and model."""
    with connect() as client:
        handle = client.job(job_id)
        found, options = handle.info(), handle.options()
        model, model_text = _model(client, found)
    texts: list[Any] = [
        pairs(
            [
                ("job", found["id"]),
                ("name", found["name"]),
                ("user", found["user"]),
                ("state", state_of(found)),
                ("waits", found["queue_reason"]),
                ("submitted", _clock(found["created_at"])),
                ("steps", found["step"]),
                ("seconds", f"{found['train_seconds']:.1f} of training" if found["ended_at"] else None),
                *_asked(options),
                ("values", values(found["history"][-1]) if found["history"] else None),
                ("error", found["error"] and f"{found['error']['fact']} {found['error']['remedy']}"),
                *model_text,
            ]
        )
    ]
    if found["plan"]:
        from paceline.plan import Plan

        texts += ["", Plan.model_validate(found["plan"]).explain()]
    show(json, {**found, **dict(_asked(options)), "result": model}, *texts)


def _asked(options: TrainOptions | ScriptOptions) -> list[tuple[str, str]]:
    """What the job is to do, by the name of the field that says so."""
    if isinstance(options, ScriptOptions):
        return [("command", shlex.join(options.command) or "a function")]
    return [("stop", str(options.stop))]


def _model(client: Client, found: dict[str, Any]) -> tuple[dict[str, Any] | None, list[tuple[str, str]]]:
    """What a finished job delivers, for programs and for people."""
    if found["kind"] == "script" and found["state"] in ENDED:
        return _output(client, found["id"])
    if found["state"] != "SUCCEEDED":
        return None, []
    try:
        model = client.get(f"/jobs/{found['id']}/result")
    except Expired as gone:
        return None, [("model", gone.fact)]
    kept = f"{model['nbytes']:,} bytes, kept until {_clock(model['expires_at'])}; `paceline model {found['id']}`"
    texts = [("stopped", model["stop_reason"]), ("digest", model["digest"]), ("repeats", reproducible(model))]
    return model, [*texts, ("model", kept)]


def _output(client: Client, job_id: str) -> tuple[dict[str, Any] | None, list[tuple[str, str]]]:
    """What a script left, however it ended, for programs and for people."""
    try:
        output = client.get(f"/jobs/{job_id}/output")
    except Expired as gone:
        return None, [("output", gone.fact)]
    except Conflict:  # it ended before there was any
        return None, []
    kept = f"{output['folder']}, {output['nbytes']:,} bytes, kept until {_clock(output['expires_at'])}"
    return output, [("output", f"{kept}; `paceline output {job_id}`" if output["blob"] else "none")]


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="Of this rank alone.")] = None,
    json: Json = False,
) -> None:
    """Show what a job's workers printed, each line behind its attempt and rank."""
    with connect() as client:
        handle = client.job(job_id)
        if json:
            text = "".join(handle.follow_logs(rank)) if follow else handle.logs(rank)
            show(json, {"id": job_id, "text": text})
            return
        for text in handle.follow_logs(rank) if follow else [handle.logs(rank)]:
            typer.echo(text, nl=False)


def cancel(job_id: JobId, json: Json = False) -> None:
    """End a job without a model. One that has ended stays as it is."""
    with connect() as client:
        handle = client.job(job_id)
        before = handle.state
        handle.cancel()
        state = handle.wait(CANCEL_WITHIN_S)
    told = f"{job_id} had already ended: it is {state}." if before in ENDED else f"{job_id} is {state}."
    show(json, {"id": job_id, "state": state}, told)


def scale(
    job_id: JobId,
    workers: Annotated[int, typer.Argument(metavar="WORKERS", min=1, help="How many workers are to train it.")],
    json: Json = False,
) -> None:
    """Train a job with another number of workers. The model stays the same."""
    with connect() as client:
        handle = client.job(job_id)
        handle.scale(workers)
        state = handle.state
    when = "from its next round on" if state == "RUNNING" else f"once it trains; it is {state}"
    told = f"{job_id} trains with {counted(workers, 'worker')} {when}, as far as nodes are free."
    show(json, {"id": job_id, "state": state, "workers": workers}, told)


def model(job_id: JobId, output: Output = None, json: Json = False) -> None:
    """Fetch a finished job's model and check its digest."""
    check_output(output)
    with connect() as client:
        handle = client.job(job_id)
        state = handle.state
        if state not in ENDED:
            raise Conflict(f"job {job_id} is {state} and has no model yet.", f"Watch it: `paceline logs {job_id} -f`.")
        document, text = deliver(handle, output)
    show(json, document, text)
