"""A script's life as a pure function, beside that of a training job: `job, commands = step(job, event, now)`.

    QUEUED -> STARTING -> RUNNING -> SUCCEEDED
                 \\           |  \\--> FAILED, CANCELLED
                  \\-> RECOVERING -> WAITING -> STARTING (all ranks anew)

As under torchrun, all ranks start anew when one of them ends before its time: as often as the user said where the
script failed or hung, and not counted where a worker or its node was lost. How attempts and jobs end: `scriptends`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from paceline.errors import UserCodeError
from paceline.master import torchrun
from paceline.master.commands import Command, Enqueue, Record, Send, SetTimer
from paceline.master.ends import state_record
from paceline.master.events import (
    Answer,
    AttemptEnded,
    CancelRequested,
    Event,
    Late,
    Lost,
    NodeDraining,
    Planned,
    Preempted,
    Tick,
    Unplaced,
)
from paceline.master.hangs import TICK_S, overslept
from paceline.master.members import named
from paceline.master.scriptends import ask_to_end, cancel, conclude, ending, lost, recover, save, saving, wrote
from paceline.master.scriptstates import (
    CANCELLED,
    Begun,
    Ending,
    ScriptEnding,
    ScriptJob,
    ScriptOutcome,
    ScriptProgress,
    ScriptRunning,
    ScriptSaving,
    ScriptStarting,
)
from paceline.master.starting import SETUP, gang_start
from paceline.master.states import TERMINAL, Queued, Recovering, Waiting
from paceline.messages.from_worker import (
    Beat,
    FromWorker,
    Reported,
    ScriptEnded,
    ScriptReady,
    WorkerFailed,
    WorkerHello,
)
from paceline.messages.to_worker import RunScript, ScriptSetup
from paceline.plan import Plan
from paceline.script import ScriptSubmission

SETUP_BOUND_S = 1800.0  # requirements are installed in it
FAILURES = "failures"
FAILURES_GRACE_S = 1.0  # who failed first may be heard last
SEEN_WITHIN_S = 8.0  # progress is seen by its worker in windows of five seconds, and told with the next beat
NAMED_RANKS = 8


def step(job: ScriptJob, event: Event, now: float) -> ScriptOutcome:
    """The job after the event, and what to do. Never raises for an event that comes late or twice."""
    if isinstance(job.state, TERMINAL):
        return job, []
    if isinstance(event, Answer | Lost | AttemptEnded | Late | Tick | Preempted) and event.attempt != job.attempt:
        return job, []
    match event, job.state:
        case CancelRequested(), _:
            return cancel(job, now)
        case Answer(_, rank, Reported() as report), Begun():
            return _reported(job, rank, report)
        case _, ScriptEnding() as ends:
            return ending(job, ends, event, now)
        case _, ScriptSaving() as saves:
            return saving(job, saves, event, now)
        case Planned(plan), Queued() | Waiting():
            return _start(job, plan)
        case Unplaced(error), Waiting() as waiting if error["fact"] != waiting.reason:
            job = replace(job, state=Waiting(error["fact"]))
            return job, [state_record(job), Record("warning", error)]
        case Answer(_, rank, message), ScriptStarting() as starting:
            return _set_up(job, starting, rank, message, now)
        case Answer(_, rank, message), ScriptRunning() as running:
            return _heard(job, running, rank, message, now)
        case Lost(_, rank, reason), ScriptStarting() | ScriptRunning() as begun:
            return _worker_lost(job, begun, rank, reason, now)
        case Preempted(_, for_job, reason), ScriptStarting() | ScriptRunning():
            job, commands = _vacate(replace(job, fruitless=0), reason, now)
            return job, [Record("preempted", {"for": for_job, "reason": reason}), *commands]
        case NodeDraining(node_id), ScriptStarting() | ScriptRunning() as begun:
            return _drain(job, begun.plan, node_id, now)
        case Tick(), ScriptRunning() as running:
            return _look(job, running, now)
        case Late(_, waiting_for), ScriptStarting() as starting if waiting_for == SETUP:
            silent = [named(placement) for placement in starting.plan.workers if placement.rank not in starting.ready]
            return lost(job, f"{', '.join(silent)} did not become ready within {SETUP_BOUND_S:.0f} s", now)
        case Late(_, waiting_for), ScriptRunning() as running if waiting_for == FAILURES and running.failed:
            return _failed(job, running, now)
        case AttemptEnded(), Recovering(reason):
            job = replace(job, state=Waiting(reason))
            return conclude(job, job.over, now) if job.over else (job, [state_record(job), Enqueue()])
    return job, []


# ---- the start ----


def _start(job: ScriptJob, plan: Plan) -> ScriptOutcome:
    job = replace(job, attempt=job.attempt + 1, fruitless=job.fruitless + 1, state=ScriptStarting(plan))
    return job, gang_start(job, plan, SETUP_BOUND_S)


def _set_up(job: ScriptJob, state: ScriptStarting, rank: int, message: FromWorker, now: float) -> ScriptOutcome:
    match message:
        case WorkerHello():
            state = replace(state, address=message.address) if rank == 0 else state
            return replace(job, state=state), [Send(job.attempt, rank, ScriptSetup(submission=job.submission))]
        case ScriptReady():
            store = (state.address, message.store_port) if rank == 0 else state.store
            state = replace(state, ready=state.ready | {rank}, store=store)
            everyone = len(state.ready) == len(state.plan.workers)
            return _run(job, state, now) if everyone else (replace(job, state=state), [])
        case WorkerFailed(error=error):
            return conclude(job, Ending("it could not be set up", "fail", error), now)
    return job, []


def _run(job: ScriptJob, state: ScriptStarting, now: float) -> ScriptOutcome:
    """The ranks are told where to meet, all at once."""
    restarts = (job.training.restarts, job.submission.options.max_restarts)
    placements = state.plan.workers
    commands: list[Command] = []
    for placement in placements:
        environment = torchrun.environment(placements, placement.rank, state.store, job.id, restarts)
        commands.append(Send(job.attempt, placement.rank, RunScript(environment=environment)))
    job = replace(job, ran=state.plan, state=ScriptRunning(state.plan, since=now, moved_at=now, looked_at=now))
    return job, [state_record(job), *commands, SetTimer(TICK_S, Tick(job.attempt))]


# ---- while it runs ----


def _heard(job: ScriptJob, state: ScriptRunning, rank: int, message: FromWorker, now: float) -> ScriptOutcome:
    match message:
        case Beat(cells=counter) if counter != state.counters.get(rank):
            state = replace(state, counters={**state.counters, rank: counter}, moved_at=now)
            return replace(job, state=state), []
        case ScriptEnded() if rank not in state.ended:
            state = replace(state, ended={**state.ended, rank: message}, moved_at=now)
            return _ended(job, state, message, now)
        case WorkerFailed(error=error):
            failed = Ending("a worker failed", "fail", error)
            return ask_to_end(job, replace(state, gone=state.gone | {rank}), failed, now)
    return job, []


def _reported(job: ScriptJob, rank: int, report: Reported) -> ScriptOutcome:
    """A step further than any before makes the attempt a fruitful one."""
    data: dict[str, Any] = {"rank": rank, "step": report.step, "values": report.values}
    if report.step is not None and report.step > job.training.step:
        job = replace(job, fruitless=0, training=job.training.model_copy(update={"step": report.step}))
    if rank == 0 and report.values:
        before = job.training.history[-1] if job.training.history else {}
        newest = {**before, "step": float(report.step or job.training.step), **report.values}
        job = replace(job, training=job.training.model_copy(update={"history": (newest,)}))
    return job, [Record("reported", data)]


def _ended(job: ScriptJob, state: ScriptRunning, message: ScriptEnded, now: float) -> ScriptOutcome:
    if message.status and len(state.failed) == 1:
        return replace(job, state=state), [SetTimer(FAILURES_GRACE_S, Late(job.attempt, FAILURES))]
    if state.failed or state.live:
        return replace(job, state=state), []
    return save(job, state, None, now)


def _failed(job: ScriptJob, state: ScriptRunning, now: float) -> ScriptOutcome:
    """The rank that failed first is at fault: the others fail because it is gone."""
    rank = min(state.failed, key=lambda rank: (state.failed[rank].ended_at, rank))
    error = dict(state.failed[rank].error or {})
    error["details"] = {**error.get("details", {}), "rank": rank}
    error["fact"] = f"{named(state.plan.workers[rank])}: {error.get('fact', 'the script failed')}"
    return ask_to_end(job, state, Ending(error["fact"], "restart", error), now)


def _look(job: ScriptJob, state: ScriptRunning, now: float) -> ScriptOutcome:
    """Once a second: whether no rank has made any progress for too long. One that waits for another is not at fault."""
    bound = job.submission.options.hang_timeout
    moved_at = min(now, state.moved_at + overslept(state.looked_at, now))
    state = replace(state, looked_at=now, moved_at=moved_at)
    if bound is None or not state.live or now - state.moved_at <= bound + SEEN_WITHIN_S:
        return replace(job, state=state), [SetTimer(TICK_S, Tick(job.attempt))]
    names = [named(state.plan.workers[rank]) for rank in state.live]
    told = ", ".join(names[:NAMED_RANKS]) + (f" and {len(names) - NAMED_RANKS} more" if names[NAMED_RANKS:] else "")
    error = UserCodeError(
        f"the script hangs: for {bound:.0f} s, {told} used no processor time, printed nothing and reported nothing.",
        "The last stacks of its threads follow; where it may rest for so long, give a longer hang_timeout, or None.",
        traceback="",
    ).to_json()
    job, commands = ask_to_end(job, state, Ending(error["fact"].rstrip("."), "restart", error, state.live), now)
    return job, [Record("hung", {"ranks": list(state.live), "seconds": bound}), *commands]


# ---- losses ----


def _worker_lost(
    job: ScriptJob, state: ScriptStarting | ScriptRunning, rank: int, reason: str, now: float
) -> ScriptOutcome:
    """Where its script had ended well, and left nothing there that is still to be fetched, it costs nothing."""
    place = state.plan.workers[rank]
    text = f"{named(place)} is lost: {reason}"
    if isinstance(state, ScriptRunning):
        state = replace(state, gone=state.gone | {rank})
        job = replace(job, state=state)
        if _spared(state, rank):
            return job, []
    record = Record("worker_lost", {"reason": text, "rank": rank, "node": place.node_name})
    job, commands = lost(job, text, now)
    return job, [record, *commands]


def _spared(state: ScriptRunning, rank: int) -> bool:
    """Rank 0's worker serves the store where the others meet."""
    if rank == 0 or rank not in state.ended or state.ended[rank].status:
        return False
    return any(other not in state.gone for other in state.beside(rank)) or not wrote(state, rank)


def _drain(job: ScriptJob, plan: Plan, node_id: str, now: float) -> ScriptOutcome:
    """All ranks start anew on other nodes, as a script can't be moved."""
    there = [placement for placement in plan.workers if placement.node_id == node_id]
    if not there:
        return job, []
    record = Record("draining", {"node": node_id, "ranks": [placement.rank for placement in there]})
    job, commands = _vacate(replace(job, fruitless=0), f"node {there[0].node_name} is given back", now)
    return job, [record, *commands]


def _vacate(job: ScriptJob, reason: str, now: float) -> ScriptOutcome:
    """Leave the places to others: what runs may save first."""
    if isinstance(job.state, ScriptRunning):
        return ask_to_end(job, job.state, Ending(reason, "again"), now)
    return recover(job, reason, now)


def resumed(
    id: str, submission: ScriptSubmission, attempt: int, elapsed_s: float, progress: ScriptProgress, plan: Plan | None
) -> ScriptOutcome:
    """A job that a restarted master finds unfinished: back in the queue. plan: of its last attempt."""
    state = Waiting("the master was restarted") if attempt else Queued()
    job = ScriptJob(id, submission, state, attempt, 0, elapsed_s, progress, plan if attempt else None)
    if progress.cancelled:
        return conclude(job, CANCELLED, 0.0)
    return job, [state_record(job), Enqueue()]
