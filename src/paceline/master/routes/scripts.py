"""Scripts and functions as they are: submit, plan, and fetch what they left. All else is a job's, as of any kind."""

from __future__ import annotations

import time

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from paceline import versions
from paceline.errors import Conflict, Expired
from paceline.master.context import Master, The, TheCaller, TheJob, allow
from paceline.master.delivery import KeptFolder
from paceline.master.lives import is_script
from paceline.master.retention import expires_at
from paceline.master.routes.jobs import JobView, check_blobs, view
from paceline.messages.from_worker import Returned
from paceline.plan import Plan
from paceline.planner.scripts import plan_script
from paceline.script import ScriptSubmission

router = APIRouter(tags=["scripts"], dependencies=[allow("client")])


class OutputView(BaseModel):
    """What a script left. blob, nbytes: a tar file of rank 0's output folder, where there is one.

    folders: those of each rank, the same for all ranks of a node. returned: by each rank, of a call. expires_at: when
    it is kept no longer.
    """

    job_id: str
    blob: str | None
    nbytes: int
    folder: str
    folders: list[KeptFolder | None]
    returned: list[Returned | None]
    expires_at: float | None


@router.post("/scripts", status_code=201)
async def submit(master: The, caller: TheCaller, submission: ScriptSubmission) -> JobView:
    """Store a script's job, then plan and run it. The same request id again answers with the same job."""
    await run_in_threadpool(_check, master, submission)
    return view(master, await master.controller.submit(submission, caller.user), caller)


@router.post("/scripts/plan")
async def plan(master: The, submission: ScriptSubmission) -> Plan:
    """Where its ranks would run now. Nothing is stored or run; no blobs are needed."""
    _check_versions(master, submission)
    return await run_in_threadpool(plan_script, master.cluster.nodes(), submission.options)


def _check(master: Master, submission: ScriptSubmission) -> None:
    _check_versions(master, submission)
    check_blobs(master, submission.blobs)


def _check_versions(master: Master, submission: ScriptSubmission) -> None:
    """A function travels as bytecode, so that all must agree; a script only needs the messages to be understood."""
    theirs = submission.versions
    if submission.function is None:
        theirs = master.versions.model_copy(update={"paceline": theirs.paceline})
    versions.check(theirs, master.versions, "the client")


@router.get("/jobs/{job_id}/output")
async def output(row: TheJob) -> OutputView:
    """What a script left, one that failed or was cancelled too; fetch the blob, then acknowledge."""
    if not is_script(row.submission):
        raise Conflict(f"job {row.id} is a training: no folder is kept.", f"Fetch its `paceline model {row.id}`.")
    if row.delivery is None or "returned" not in row.delivery:
        raise Conflict(f"job {row.id} is {row.state} and has no output.", "Wait for it, or see `paceline job`.")
    at = expires_at(row)
    if at is not None and at <= time.time():
        raise Expired(f"job {row.id}'s output was kept for the documented time and is gone.", "Run it again.")
    return OutputView(
        job_id=row.id,
        blob=row.delivery["blob"] or None,
        nbytes=row.delivery["nbytes"],
        folder=row.delivery["folder"],
        folders=row.delivery["folders"],
        returned=row.delivery["returned"],
        expires_at=at,
    )
