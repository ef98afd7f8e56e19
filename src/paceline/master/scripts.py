"""A script's life as a pure function, beside that of a training job: `job, commands = step(job, event, now)`.

    QUEUED -> STARTING -> RUNNING -> SUCCEEDED
                 \\           |  \\--> FAILED, CANCELLED
                  \\-> RECOVERING -> WAITING -> STARTING (all ranks anew)

As under torchrun, all ranks start anew when one of them ends before its time: as often as the user said where the
script failed, and not counted where a worker or its node was lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ConfigDict

from paceline.errors import JobFailed
from paceline.master import torchrun
from paceline.master.commands import Command, Enqueue, Record, Send, SetTimer, StopWorkers
from paceline.master.delivery import Output
from paceline.master.ends import MAX_FRUITLESS_ATTEMPTS, state_record
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
    Unplaced,
)
from paceline.master.members import named
from paceline.master.starting import SETUP, gang_start
from paceline.master.states import TERMINAL, Cancelled, Failed, Queued, Recovering, Succeeded, Waiting
from paceline.messages.from_worker import (
    FromWorker,
    OutputSaved,
    Reported,
    ScriptEnded,
    ScriptReady,
    WorkerFailed,
    WorkerHello,
)
from paceline.messages.to_worker import GiveUp, RunScript, SaveOutput, ScriptSetup
from paceline.plan import Plan
from paceline.script import ScriptSubmission

SETUP_BOUND_S = 1800.0  # requirements are installed in it
OUTPUT = "output"
OUTPUT_BOUND_S = 3600.0
FAILURES = "failures"
FAILURES_GRACE_S = 1.0  # who failed first may be heard last
LEAVING = "leaving"
LEAVING_BOUND_S = 15.0  # more than a worker leaves to its script after SIGTERM
FRUITFUL_S = 60.0


class ScriptProgress(BaseModel):
    """restarts: those that count. step: the furthest that was reported; history: of it, the newest values alone."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    restarts: int = 0
    step: int = 0
    history: tuple[dict[str, float], ...] = ()


@dataclass(frozen=True)
class ScriptStarting:
    """ready: ranks whose project and requirements are there. store: (host, port) of rank 0's, once it is known."""

    plan: Plan
    address: str = ""
    ready: frozenset[int] = frozenset()
    store: tuple[str, int] = ("", 0)


@dataclass(frozen=True)
class Leaving:
    """All ranks were sent SIGTERM, and have a moment to save what they will. cancelled: it does not start again."""

    reason: str
    cancelled: bool = False


@dataclass(frozen=True)
class ScriptRunning:
    """ended: how the script ended on each rank so far. since: when it began on all of them.

    failure: why the job has failed; only what rank 0 wrote is still to be fetched. leaving: it was asked to end.
    """

    plan: Plan
    since: float
    ended: Mapping[int, ScriptEnded] = field(default_factory=dict)
    failure: dict[str, Any] | None = None
    leaving: Leaving | None = None

    @property
    def saves(self) -> bool:
        """Whether it has ended everywhere, and only its output is still to be fetched."""
        return len(self.ended) == len(self.plan.workers)

    @property
    def leaves(self) -> bool:
        """Whether its end is near."""
        return self.saves or self.failure is not None or self.leaving is not None

    @property
    def failed(self) -> Mapping[int, ScriptEnded]:
        return {rank: end for rank, end in self.ended.items() if end.status}


ScriptState = (
    Queued | ScriptStarting | ScriptRunning | Recovering | Waiting | Succeeded | Failed | Cancelled
)  # as `states.State`


@dataclass(frozen=True)
class ScriptJob:
    """attempt, fruitless, elapsed_s: as of `job.Job`. training: what the store keeps of its progress.

    nodes: of the present or last attempt, that of rank 0 first.
    """

    id: str
    submission: ScriptSubmission
    state: ScriptState = field(default_factory=Queued)
    attempt: int = 0
    fruitless: int = 0
    elapsed_s: float = 0.0
    training: ScriptProgress = field(default_factory=ScriptProgress)
    nodes: tuple[str, ...] = ()

    @property
    def state_name(self) -> str:
        return type(self.state).__name__.removeprefix("Script").upper()


ScriptOutcome = tuple[ScriptJob, list[Command]]


def step(job: ScriptJob, event: Event, now: float) -> ScriptOutcome:
    """The job after the event, and what to do. Never raises for an event that comes late or twice."""
    if isinstance(job.state, TERMINAL):
        return job, []
    if isinstance(event, Answer | Lost | AttemptEnded | Late | Preempted) and event.attempt != job.attempt:
        return job, []
    match event, job.state:
        case CancelRequested(), ScriptRunning(failure=None, saves=False) as running:
            return _leave(job, running, Leaving("it was cancelled", cancelled=True))
        case CancelRequested(), _:
            return end(job, Cancelled(), now)
        case _, ScriptRunning(leaving=leaving) as running if leaving is not None:
            return _leaving(job, running, leaving, event, now)
        case Planned(plan), Queued() | Waiting():
            return _start(job, plan)
        case Unplaced(error), Waiting() as waiting if error["fact"] != waiting.reason:
            job = replace(job, state=Waiting(error["fact"]))
            return job, [state_record(job), Record("warning", error)]
        case Answer(_, rank, message), ScriptStarting() as starting:
            return _set_up(job, starting, rank, message, now)
        case Answer(_, rank, message), ScriptRunning() as running:
            return _heard(job, running, rank, message, now)
        case Lost(_, rank, _), ScriptRunning() as running if rank and (running.failure or _ended_well(running, rank)):
            return job, []  # only rank 0 has to save the output yet
        case Lost(), ScriptRunning(failure=error) if error is not None:
            return end(job, Failed(error), now)
        case Lost(_, rank, reason), ScriptStarting() | ScriptRunning() as begun:
            text = f"{named(begun.plan.workers[rank])} is lost: {reason}"
            record = Record("worker_lost", {"reason": text, "rank": rank, "node": begun.plan.workers[rank].node_name})
            job, commands = _lost(job, text, now)
            return job, [record, *commands]
        case Preempted(_, for_job, reason), ScriptStarting() | ScriptRunning(failure=None, saves=False):
            job, commands = _vacate(replace(job, fruitless=0), reason, now)
            return job, [Record("preempted", {"for": for_job, "reason": reason}), *commands]
        case NodeDraining(node_id), ScriptStarting() | ScriptRunning(failure=None, saves=False) as begun:
            return _drain(job, begun.plan, node_id, now)
        case Late(_, waiting_for), ScriptStarting() as starting if waiting_for == SETUP:
            silent = [named(placement) for placement in starting.plan.workers if placement.rank not in starting.ready]
            return _lost(job, f"{', '.join(silent)} did not become ready within {SETUP_BOUND_S:.0f} s", now)
        case Late(_, waiting_for), ScriptRunning(failure=None) as running if waiting_for == FAILURES and running.failed:
            return _failed(job, running, now)
        case Late(_, waiting_for), ScriptRunning(failure=error) if waiting_for == OUTPUT:
            late = f"its output did not arrive within {OUTPUT_BOUND_S:.0f} s"
            return end(job, Failed(error), now) if error is not None else _lost(job, late, now)
        case AttemptEnded(), Recovering(reason):
            job = replace(job, state=Waiting(reason))
            return job, [state_record(job), Enqueue()]
    return job, []


def nodes_of(plan: Plan) -> tuple[str, ...]:
    """By rank."""
    return tuple(dict.fromkeys(placement.node_id for placement in plan.workers))


# ---- the start ----


def _start(job: ScriptJob, plan: Plan) -> ScriptOutcome:
    begun = ScriptStarting(plan)
    job = replace(job, attempt=job.attempt + 1, fruitless=job.fruitless + 1, state=begun, nodes=nodes_of(plan))
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
            return end(job, Failed(error), now)
    return job, []


def _run(job: ScriptJob, state: ScriptStarting, now: float) -> ScriptOutcome:
    """The ranks are told where to meet, all at once."""
    restarts = (job.training.restarts, job.submission.options.max_restarts)
    placements = state.plan.workers
    commands: list[Command] = []
    for placement in placements:
        environment = torchrun.environment(placements, placement.rank, state.store, job.id, restarts)
        commands.append(Send(job.attempt, placement.rank, RunScript(environment=environment)))
    job = replace(job, state=ScriptRunning(state.plan, since=now))
    return job, [state_record(job), *commands]


# ---- while it runs ----


def _heard(job: ScriptJob, state: ScriptRunning, rank: int, message: FromWorker, now: float) -> ScriptOutcome:
    match message:
        case Reported():
            return _reported(job, state, rank, message)
        case ScriptEnded() if rank not in state.ended:
            return _ended(job, replace(state, ended={**state.ended, rank: message}), message, now)
        case OutputSaved() if rank == 0 and state.failure is not None:
            return end(job, Failed(state.failure, _output(job, state, message, "it failed")), now)
        case OutputSaved() if rank == 0 and state.saves:
            return _succeeded(job, state, message, now)
        case WorkerFailed(error=error):
            return end(job, Failed(state.failure or error), now)
    return job, []


def _reported(job: ScriptJob, state: ScriptRunning, rank: int, report: Reported) -> ScriptOutcome:
    """A step further than any before makes the attempt a fruitful one."""
    data: dict[str, Any] = {"rank": rank, "step": report.step, "values": report.values}
    if report.step is not None and report.step > job.training.step:
        job = replace(job, fruitless=0, training=job.training.model_copy(update={"step": report.step}))
    if rank == 0 and report.values:
        before = job.training.history[-1] if job.training.history else {}
        newest = {**before, "step": float(report.step or job.training.step), **report.values}
        job = replace(job, training=job.training.model_copy(update={"history": (newest,)}))
    return replace(job, state=state), [Record("reported", data)]


def _ended(job: ScriptJob, state: ScriptRunning, message: ScriptEnded, now: float) -> ScriptOutcome:
    job = replace(job, state=state)
    if state.failure is not None:
        return job, _save(job) if 0 in state.ended else []
    if message.status and len(state.failed) == 1:
        return job, [SetTimer(FAILURES_GRACE_S, Late(job.attempt, FAILURES))]
    if state.failed or not state.saves:
        return job, []
    return job, _save(job)


def _save(job: ScriptJob) -> list[Command]:
    return [Send(job.attempt, 0, SaveOutput()), SetTimer(OUTPUT_BOUND_S, Late(job.attempt, OUTPUT))]


def _ended_well(state: ScriptRunning, rank: int) -> bool:
    return rank in state.ended and not state.ended[rank].status


def _failed(job: ScriptJob, state: ScriptRunning, now: float) -> ScriptOutcome:
    """The rank that failed first is at fault: the others fail because it is gone."""
    rank = min(state.failed, key=lambda rank: (state.failed[rank].ended_at, rank))
    error = dict(state.failed[rank].error or {})
    error["details"] = {**error.get("details", {}), "rank": rank}
    error["fact"] = f"{named(state.plan.workers[rank])}: {error.get('fact', 'the script failed')}"
    restarts, bound = job.training.restarts, job.submission.options.max_restarts
    if restarts >= bound:
        return _given_up(job, replace(state, failure=error))
    job = replace(job, fruitless=0, training=job.training.model_copy(update={"restarts": restarts + 1}))
    return _recover(job, f"restart {restarts + 1} of {bound}: {error['fact']}", now)


def _given_up(job: ScriptJob, state: ScriptRunning) -> ScriptOutcome:
    """The job has failed; what rank 0 wrote, such as its checkpoints, is kept all the same."""
    job = replace(job, state=state)
    others = tuple(placement.rank for placement in state.plan.workers if placement.rank)
    stops: list[Command] = [StopWorkers(job.attempt, others)] if others else []
    if 0 in state.ended:
        return job, [*stops, *_save(job)]
    bound = SetTimer(OUTPUT_BOUND_S, Late(job.attempt, OUTPUT))
    return job, [*stops, Send(job.attempt, 0, GiveUp(key=job.id)), bound]


# ---- losses and ends ----


def _lost(job: ScriptJob, reason: str, now: float) -> ScriptOutcome:
    """Start anew without counting it; but not for ever where no attempt gets anywhere."""
    if isinstance(job.state, ScriptRunning) and now - job.state.since >= FRUITFUL_S:
        job = replace(job, fruitless=0)
    if job.fruitless >= MAX_FRUITLESS_ATTEMPTS:
        error = JobFailed(
            f"{job.fruitless} attempts in a row lost a worker within {FRUITFUL_S:.0f} s, and got no further than step "
            f"{job.training.step}; the last: {reason}.",
            "See `paceline logs` for what the script printed; a worker that the system killed may lack memory.",
        )
        return end(job, Failed(error.to_json()), now)
    return _recover(job, reason, now)


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
        return _leave(job, job.state, Leaving(reason))
    return _recover(job, reason, now)


def _leave(job: ScriptJob, state: ScriptRunning, leaving: Leaving) -> ScriptOutcome:
    ranks = [placement.rank for placement in state.plan.workers if placement.rank not in state.ended]
    asked: list[Command] = [Send(job.attempt, rank, GiveUp(key=job.id)) for rank in ranks] if not state.leaving else []
    job = replace(job, state=replace(state, leaving=leaving))
    return job, [*asked, SetTimer(LEAVING_BOUND_S, Late(job.attempt, LEAVING))]


def _leaving(job: ScriptJob, state: ScriptRunning, leaving: Leaving, event: Event, now: float) -> ScriptOutcome:
    """Until the script has ended on every rank, or its time is up."""
    match event:
        case Answer(_, rank, Reported() as report):
            return _reported(job, state, rank, report)
        case Answer(_, rank, ScriptEnded() as message):
            state = replace(state, ended={**state.ended, rank: message})
        case Lost(_, rank, _):
            state = replace(state, ended={**state.ended, rank: ScriptEnded(status=1, ended_at=now)})
        case Late(_, waiting_for) if waiting_for == LEAVING:
            return _left(job, leaving, now)
    job = replace(job, state=state)
    return _left(job, leaving, now) if state.saves else (job, [])


def _left(job: ScriptJob, leaving: Leaving, now: float) -> ScriptOutcome:
    return end(job, Cancelled(), now) if leaving.cancelled else _recover(job, leaving.reason, now)


def _recover(job: ScriptJob, reason: str, now: float) -> ScriptOutcome:
    job = replace(_stop_clock(job, now), state=Recovering(reason))
    return job, [Record("attempt_lost", {"reason": reason}), state_record(job), StopWorkers(job.attempt)]


def _succeeded(job: ScriptJob, state: ScriptRunning, saved: OutputSaved, now: float) -> ScriptOutcome:
    reason = f"it ended on all {len(state.ended)} ranks" if len(state.ended) > 1 else "it ended"
    job = replace(_stop_clock(job, now), state=Succeeded(_output(job, state, saved, reason)))
    return job, [state_record(job), StopWorkers(job.attempt)]


def _output(job: ScriptJob, state: ScriptRunning, saved: OutputSaved, reason: str) -> Output:
    ends = [state.ended.get(placement.rank) for placement in state.plan.workers]
    return Output(
        blob=saved.blob or "",
        nbytes=saved.nbytes,
        folder=job.submission.options.outputs,
        returned=tuple(end.returned if end else None for end in ends),
        stop_reason=reason,
    )


def end(job: ScriptJob, state: Failed | Cancelled, now: float) -> ScriptOutcome:
    """The job is over without an output; no worker of it stays."""
    stops: list[Command] = [StopWorkers(job.attempt)] if job.attempt else []
    job = replace(_stop_clock(job, now), state=state)
    return job, [state_record(job), *stops]


def _stop_clock(job: ScriptJob, now: float) -> ScriptJob:
    if isinstance(job.state, ScriptRunning):
        return replace(job, elapsed_s=job.elapsed_s + now - job.state.since)
    return job


def resumed(
    id: str, submission: ScriptSubmission, attempt: int, elapsed_s: float, progress: ScriptProgress, plan: Plan | None
) -> ScriptOutcome:
    """A job that a restarted master finds unfinished: back in the queue. plan: of its last attempt."""
    state = Waiting("the master was restarted") if attempt else Queued()
    job = ScriptJob(id, submission, state, attempt, 0, elapsed_s, progress, nodes_of(plan) if plan else ())
    return job, [state_record(job), Enqueue()]
