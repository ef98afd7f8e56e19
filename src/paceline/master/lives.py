"""Jobs of both kinds, a training and a script, for those who need not know which: what each has its own way for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paceline.errors import PacelineError
from paceline.master import ends, machine, scripts
from paceline.master.commands import Command
from paceline.master.committed import Checkpoint
from paceline.master.events import Event
from paceline.master.job import Job
from paceline.master.models import JobRow
from paceline.master.profiles import plan_by
from paceline.master.scriptends import end as end_script
from paceline.master.scriptstates import Begun, ScriptJob, ScriptProgress, ScriptSaving, ScriptStarting
from paceline.master.states import Failed, Planning, Running, Starting
from paceline.measured import Measured
from paceline.plan import Node, Plan
from paceline.planner.scripts import plan_script
from paceline.script import ScriptSubmission
from paceline.spec import Submission

AnyJob = Job | ScriptJob
AnySubmission = Submission | ScriptSubmission


def is_script(body: dict[str, Any]) -> bool:
    """Whether a stored submission is a script's."""
    return body.get("kind") == "script"


def submission_of(body: dict[str, Any]) -> AnySubmission:
    """A submission as it was stored."""
    return ScriptSubmission.model_validate(body) if is_script(body) else Submission.model_validate(body)


def new(job_id: str, submission: AnySubmission) -> AnyJob:
    if isinstance(submission, ScriptSubmission):
        return ScriptJob(id=job_id, submission=submission)
    return Job(id=job_id, submission=submission)


def resumed(row: JobRow) -> tuple[AnyJob, list[Command]]:
    """A job that a restarted master finds unfinished."""
    submission = submission_of(row.submission)
    if isinstance(submission, ScriptSubmission):
        progress = ScriptProgress.model_validate(row.training)
        plan = Plan.model_validate(row.plan) if row.plan else None
        return scripts.resumed(row.id, submission, row.attempt, row.elapsed_s, progress, plan)
    checkpoints = tuple(Checkpoint.model_validate(kept) for kept in row.checkpoints or ())
    return machine.resumed(row.id, submission, row.attempt, row.elapsed_s, checkpoints, row.wish, row.hardware_class)


def step(job: AnyJob, event: Event, now: float) -> tuple[AnyJob, list[Command]]:
    return scripts.step(job, event, now) if isinstance(job, ScriptJob) else machine.step(job, event, now)


def failed(job: AnyJob, error: PacelineError, now: float) -> tuple[AnyJob, list[Command]]:
    """The job, ended by this error."""
    state = Failed(error.to_json())
    return end_script(job, state, now) if isinstance(job, ScriptJob) else ends.end(job, state, now)


def first_plan(nodes: Sequence[Node], submission: AnySubmission, known: Measured) -> Plan:
    """Of a job that has not begun. Raises Unplaceable."""
    if isinstance(submission, ScriptSubmission):
        return plan_script(nodes, submission.options)
    return plan_by(known, nodes, submission)


def next_plan(nodes: Sequence[Node], job: AnyJob, known: Measured, most: int | None = None) -> Plan:
    """Of the next attempt of a job. most: workers that it may have. Raises Unplaceable."""
    if isinstance(job, ScriptJob):
        return plan_script(nodes, job.submission.options, job.nodes)
    options = job.submission.options.model_copy(update={"deadline": None})  # it was judged when the job came
    admitted = job.submission.model_copy(update={"options": options})
    if job.copies is not None:
        nodes = [_with_kept(node, job.copies.nodes.get(node.id, 0)) for node in nodes]
    return plan_by(known, nodes, admitted, most or job.wish, job.hardware_class)


def _with_kept(node: Node, nbytes: int) -> Node:
    free = min(node.memory, node.free_memory + nbytes)
    return node.model_copy(update={"kept": nbytes, "free_memory": free})


def present_plan(job: AnyJob) -> Plan | None:
    """Of the attempt that is measured for, starts or runs."""
    state = job.state
    if isinstance(state, Planning | Starting | Running | ScriptStarting | Begun):
        return state.plan
    return None


def held_by_worker(job: AnyJob) -> tuple[int, int]:
    """(cores, bytes of memory) of each worker of the present attempt; one that only fetches an output has none."""
    if isinstance(job.state, ScriptSaving) and job.state.anew:
        return 0, 0
    plan = present_plan(job)
    assert plan is not None
    return plan.cores_per_worker, plan.memory_per_worker
