"""Jobs: submit, plan, watch, cancel, and fetch the result. The list is for all users; a job itself, for its owner."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from paceline import versions
from paceline.errors import Conflict, Expired, InvalidSpec
from paceline.explain import counted
from paceline.master import ledger
from paceline.master.context import Caller, Master, The, TheCaller, TheJob, allow
from paceline.master.events import CancelRequested, ScaleRequested
from paceline.master.feed import FeedEvent
from paceline.master.lives import is_script, submission_of
from paceline.master.models import JobRow
from paceline.master.retention import expires_at
from paceline.messages.from_worker import ModelFile
from paceline.plan import Plan
from paceline.script import ScriptOptions, ScriptSubmission
from paceline.spec import Submission, TrainOptions

ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
COUNTS = ("step", "samples")  # of an evaluation
KEEP_ALIVE_S = 15.0
LOOKED_AT_WITHIN_S = 1.0

Place = Annotated[int, Query(ge=0, lt=2**53)]

router = APIRouter(prefix="/jobs", tags=["jobs"], dependencies=[allow("client")])


class JobView(BaseModel):
    """A job as the API shows it. user: who submitted it.

    queue_place: 1 is next; None where it does not wait. expected_start_s: seconds from now by which it starts, as far
    as predictions go; None where they can't tell. queue_reason: why it waits. history, values, error: empty where the
    job is another user's.
    """

    id: str
    kind: Literal["train", "script"]
    name: str | None
    user: str
    state: str
    attempt: int
    step: int
    history: list[dict[str, int | float | None]]
    plan: Plan | None
    error: dict[str, Any] | None
    queue_place: int | None
    expected_start_s: float | None
    queue_reason: str | None
    created_at: float
    ended_at: float | None
    delivered_at: float | None
    values: list[str]
    train_seconds: float


class ResultView(BaseModel):
    """What a finished job delivers; `blob` is the model's safetensors file. expires_at: when it is kept no longer.

    files: of a sharded model, each with its blob; `blob` is then their index.
    """

    job_id: str
    blob: str
    files: list[ModelFile] = []
    nbytes: int
    digest: str
    step: int
    stop_reason: str
    reproducible: bool
    irreproducible_because: str | None
    hardware_class: str
    history: list[dict[str, int | float | None]]
    plan: Plan
    versions: dict[str, str | None]
    ledger: list[dict[str, int]]
    train_seconds: float
    expires_at: float | None


class WorkerView(BaseModel):
    rank: int
    node: str
    pid: int | None
    share: tuple[int, int]
    last_step: int


class LogPage(BaseModel):
    text: str
    next_offset: int


def view(master: Master, row: JobRow, caller: Caller) -> JobView:
    wait, own = master.controller.scheduler.waits.get(row.id), caller.owns(row)
    return JobView(
        id=row.id,
        kind="script" if is_script(row.submission) else "train",
        name=row.name,
        user=row.user,
        state=row.state,
        attempt=row.attempt,
        step=row.training.get("step", 0),
        history=_finite(row) if own else [],
        plan=Plan.model_validate(row.plan) if row.plan else None,
        error=row.error if own else None,
        queue_place=wait.place if wait else None,
        expected_start_s=wait.start_in_s if wait else None,
        queue_reason=wait.reason if wait else None,
        created_at=row.created_at,
        ended_at=row.ended_at,
        delivered_at=row.delivered_at,
        values=row.submission["facts"]["values"] if own and "facts" in row.submission else [],
        train_seconds=row.elapsed_s,
    )


def _finite(row: JobRow) -> list[dict[str, int | float | None]]:
    """The evaluations; JSON has no NaN, so it becomes null."""
    return [{k: _number(k, v) for k, v in values.items()} for values in row.training.get("history", [])]


def _number(name: str, value: float | None) -> int | float | None:
    if not isinstance(value, int | float) or not abs(value) < float("inf"):
        return None
    return int(value) if name in COUNTS else value


@router.post("", status_code=201)
async def submit(master: The, caller: TheCaller, submission: Submission) -> JobView:
    """Store a job, then plan and run it: the answer tells its plan, or its place in the queue.

    The same request id again answers with the same job.
    """
    await run_in_threadpool(check_submission, master, submission)
    job_id = (await master.controller.submit(submission, caller.user)).id
    await master.controller.scheduler.looked_at(job_id, LOOKED_AT_WITHIN_S)
    return view(master, await run_in_threadpool(master.store.job, job_id), caller)


@router.post("/plan")
async def plan(master: The, caller: TheCaller, submission: Submission) -> Plan:
    """What the master would decide now, by what it knows; where the job would have to wait, for when it starts.

    Nothing is stored, run or measured; no blobs are needed.
    """
    versions.check(submission.versions, master.versions, "the client")
    return await master.controller.scheduler.foresee(submission, caller.user)


def check_submission(master: Master, submission: Submission) -> None:
    """Raise unless versions agree and all blobs are here."""
    versions.check(submission.versions, master.versions, "the client")
    check_blobs(master, submission.blobs)


def check_blobs(master: Master, names: Iterable[str]) -> None:
    """Raise InvalidSpec unless all of a submission's blobs are here."""
    missing = master.blobs.missing(names)
    if missing:
        raise InvalidSpec(
            f"{len(missing)} of the submission's blobs are not here: {missing[0][:12]}….", "Upload them first."
        )


@router.get("")
async def jobs(master: The, caller: TheCaller) -> list[JobView]:
    """All jobs of all users, newest first."""
    return await run_in_threadpool(lambda: [view(master, row, caller) for row in master.store.jobs()])


@router.get("/{job_id}")
async def job(master: The, caller: TheCaller, row: TheJob) -> JobView:
    """One job."""
    return view(master, row, caller)


@router.get("/{job_id}/options")
def options(row: TheJob) -> TrainOptions | ScriptOptions:
    """The plain part of the job's spec."""
    return submission_of(row.submission).options


@router.post("/{job_id}/cancel")
async def cancel(master: The, caller: TheCaller, row: TheJob) -> JobView:
    """End a job without a model. A job that has ended stays as it is."""
    master.controller.post(row.id, CancelRequested())
    return view(master, row, caller)


@router.post("/{job_id}/scale")
async def scale(master: The, caller: TheCaller, row: TheJob, workers: Annotated[int, Query(ge=1)]) -> JobView:
    """Train with so many workers from the next round on, or from its start where the job waits. The model stays."""
    if row.state in ENDED:
        raise Conflict(f"job {row.id} is {row.state}; it trains no more.", "Submit it again.")
    if is_script(row.submission):
        raise Conflict(f"job {row.id} runs a script, whose number of ranks is fixed.", "Submit it again with another.")
    options = TrainOptions.model_validate(row.submission["options"])
    cells = options.batch_size if options.sync == "sharded" else options.microbatches
    if workers > cells:
        raise InvalidSpec(
            f"{workers} workers were asked for, and job {row.id} cuts a batch into "
            f"{counted(cells, 'microbatch', 'es')}.",
            f"Ask for at most {counted(cells, 'worker')}.",
        )
    master.controller.post(row.id, ScaleRequested(workers))
    return view(master, row, caller)


@router.get("/{job_id}/events")
async def events(master: The, row: TheJob, after: Place = 0, follow: bool = True) -> StreamingResponse:
    """Server-sent events from `after` on, live until the job has ended; without `follow`, those so far."""
    return StreamingResponse(_stream(master, row.id, after, follow), media_type="text/event-stream")


async def _stream(master: Master, job_id: str, after: int, follow: bool) -> AsyncIterator[str]:
    with master.feed.watch(job_id) as live:
        for row in await run_in_threadpool(master.store.events, job_id, after):
            after = row.seq
            yield _sse(FeedEvent(row.seq, row.at, row.kind, row.data))
            if _is_last(row.kind, row.data):
                return
        while follow:
            try:
                event = await asyncio.wait_for(live.get(), KEEP_ALIVE_S)
            except TimeoutError:
                yield ": still here\n\n"
                continue
            if event.seq is not None and event.seq <= after:
                continue
            yield _sse(event)
            if _is_last(event.kind, event.data):
                return


def _is_last(kind: str, data: dict[str, Any]) -> bool:
    return kind == "state" and data.get("state") in ENDED


def _sse(event: FeedEvent) -> str:
    head = f"id: {event.seq}\n" if event.seq is not None else ""
    return f"{head}event: {event.kind}\ndata: {json.dumps({'at': event.at, **event.data})}\n\n"


@router.get("/{job_id}/result")
async def result(master: The, row: TheJob) -> ResultView:
    """The trained model's description; fetch its blob, check the digest, then acknowledge."""
    if is_script(row.submission):
        raise Conflict(f"job {row.id} runs a script, and has no model.", f"Its output: `paceline output {row.id}`.")
    if row.state != "SUCCEEDED" or row.delivery is None or row.plan is None:
        raise Conflict(f"job {row.id} is {row.state} and has no model.", "Wait for it, or see `paceline job`.")
    if not row.delivery["blob"]:
        raise Expired(f"job {row.id}'s model was kept for the documented time and is gone.", "Train it again.")
    return ResultView(
        job_id=row.id,
        history=_finite(row),
        plan=Plan.model_validate(row.plan),
        versions={**row.submission["versions"]},
        ledger=await run_in_threadpool(_ledger, master, row),
        train_seconds=row.elapsed_s,
        expires_at=expires_at(row),
        **row.delivery,
    )


@router.post("/{job_id}/delivered", status_code=204)
def delivered(master: The, row: TheJob, digest: str) -> None:
    """The client has the model and checked its digest."""
    known = {row.delivery.get("digest", row.delivery["blob"])} if row.delivery else set()
    known |= {folder["blob"] for folder in (row.delivery or {}).get("folders", ()) if folder}
    if digest not in known:
        raise Conflict(f"job {row.id} has no model with the digest {digest[:24]}….", "Fetch the result again.")
    master.store.mark_delivered(row.id, time.time())


@router.get("/{job_id}/ledger")
def job_ledger(master: The, row: TheJob) -> list[dict[str, int]]:
    """Per epoch: samples expected, committed, and committed twice."""
    return _ledger(master, row)


def _ledger(master: Master, row: JobRow) -> list[dict[str, int]]:
    submission = submission_of(row.submission)
    if isinstance(submission, ScriptSubmission):
        return []  # which samples a script reads is its own affair
    commits = [(commit.from_step, commit.to_step) for commit in master.store.commits(row.id)]
    num_samples = row.training.get("train_samples") or submission.facts.train_samples
    if not commits or not num_samples:
        return []
    return ledger.per_epoch(commits, submission.options.grid(num_samples))


@router.get("/{job_id}/workers")
async def workers(master: The, row: TheJob) -> list[WorkerView]:
    """The job's live workers, by rank."""
    found = master.cluster.of_attempt(row.id, row.attempt)
    # of now: a worker's placement is as it was started
    shares = {placed["rank"]: placed["share"] for placed in (row.plan or {"workers": ()})["workers"]}
    return [
        WorkerView(
            rank=rank,
            node=worker.placement.node_name,
            pid=worker.pid,
            share=shares.get(rank, worker.placement.share),
            last_step=worker.last_step,
        )
        for rank, worker in sorted(found.items())
    ]


@router.get("/{job_id}/logs")
def logs(master: The, row: TheJob, offset: Place = 0, rank: Place | None = None) -> LogPage:
    """What the job's workers printed, from a place on; of one rank, or of all. 0 is the first place."""
    text, end = master.logs.page(row.id, offset, rank)
    return LogPage(text=text, next_offset=end)
