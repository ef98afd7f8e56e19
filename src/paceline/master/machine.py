"""A job's life as a pure function: `job, commands = step(job, event, now)`.

    QUEUED -> STARTING -> RUNNING -> SUCCEEDED
     |  ^        \\           |  \\--> FAILED, CANCELLED
    PLANNING      \\-> RECOVERING -> WAITING -> STARTING (the next attempt)

The controller performs the commands and feeds events back. Time is an argument; there is no I/O and no randomness, so
every race and failure can be tested without a process. A message of an attempt that is not the job's present one
changes nothing. While one worker is left, a loss stays inside RUNNING: the survivors form a new group (`members.py`)
and go on; RECOVERING is for an attempt that nobody survived, and for sharded ones, where each loss takes a part of the
model along.
"""

from __future__ import annotations

from dataclasses import replace

from paceline.master import hangs, joining, members, probing, starting
from paceline.master.commands import Command, Enqueue, Record, RollBack, Send, SetTimer, StopWorkers
from paceline.master.committed import Checkpoint, Training
from paceline.master.ends import end, recover, rejoin_queue, state_record
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
    ProbeWanted,
    Recruited,
    Refused,
    ScaleRequested,
    Tick,
    Unplaced,
)
from paceline.master.job import Job, Outcome
from paceline.master.orders import waiting_for
from paceline.master.rounds import answered, settle
from paceline.master.states import TERMINAL, Cancelled, Failed, Planning, Queued, Recovering, Running, Starting, Waiting
from paceline.messages.to_worker import GiveUp
from paceline.plan import Plan
from paceline.spec import Submission


def step(job: Job, event: Event, now: float) -> Outcome:
    """The job after the event, and what to do. Never raises for an event that comes late or twice."""
    if isinstance(job.state, TERMINAL):
        return job, []
    of_attempt = Recruited | Answer | Lost | AttemptEnded | Late | Tick | Preempted
    if isinstance(event, of_attempt) and event.attempt != job.attempt:
        return job, []
    match event, job.state:
        case CancelRequested(), _:
            return end(job, Cancelled(), now)
        case Planned() as planned, Queued() | Waiting():
            return starting.start(job, planned)
        case ProbeWanted(plan, places), Queued() | Waiting() if not job.attempt and job.probed is None:
            return probing.begin(job, plan, places)
        case Refused(error), Queued() | Waiting():
            return end(job, Failed(error), now)
        case Unplaced(error), Waiting() as waiting if error["fact"] != waiting.reason:
            job = replace(job, state=Waiting(error["fact"]))
            return job, [state_record(job), Record("warning", error)]
        case Answer(_, rank, message), Planning() as planning if rank in planning.pending:
            return probing.answered(job, planning, rank, message, now)
        case Lost(_, rank, reason), Planning() as planning if rank in planning.pending:
            return probing.missed(job, planning, (rank,), f"was lost: {reason}")
        case Late(_, probing.PROBE), Planning() as planning:
            return probing.missed(job, planning, tuple(planning.pending), f"took over {probing.PROBE_BOUND_S:.0f} s")
        case AttemptEnded(), Planning(pending=pending) as planning if not pending:
            return probing.ended(job, planning)
        case Answer(_, rank, message), Starting() as begun if rank in begun.building:
            return starting.build(job, begun, rank, message, now)
        case Answer(_, rank, message), Running() as running if rank in running.building:
            return joining.join(job, running, rank, message, now)
        case Answer(_, rank, message), Running() as running if rank in running.workers:
            return answered(job, running, rank, message, now)
        case Lost(_, rank, reason), Starting() as begun:
            return recover(job, f"{_name(begun.plan, rank)} is lost: {reason}", now)
        case Lost(_, rank, reason), Running() as running:
            return _lost(job, running, rank, reason, now)
        case Late(), Starting() | Running():
            return _too_late(job, event, now)
        case Tick(), Running() as running:
            return _watch(job, running, now)
        case AttemptEnded(), Recovering(reason):
            return rejoin_queue(job, reason)
        case Recruited() as recruited, Running() as running if job.wanted:
            return joining.recruit(job, running, recruited)
        case ScaleRequested(workers), Running() as running if not running.plan.elastic:
            return _start_over(replace(job, wish=workers), f"it is to go on with {workers} workers", now)
        case NodeDraining(node_id), Starting() | Running() as state if not state.plan.elastic:
            there = [worker for worker in state.plan.workers if worker.node_id == node_id]
            return _start_over(job, f"node {there[0].node_name} is being given back", now) if there else (job, [])
        case ScaleRequested(workers), Running() as running:
            return joining.scale(job, running, workers)
        case ScaleRequested(workers), _:  # the next plan, or the start that is under way, follows it
            return replace(job, wish=workers), [Record("scaled", {"workers": workers}), Enqueue()]
        case Preempted(_, for_job, reason), Running(preempted=None) as running if not running.stopping:
            job = replace(job, state=replace(running, preempted=reason))  # the round that is under way is committed
            return job, [Record("preempted", {"for": for_job, "reason": reason})]
        case NodeDraining(node_id), Starting() as begun:
            return starting.drain(job, begun, node_id)
        case NodeDraining(node_id), Running() as running:
            return joining.drain(job, running, node_id)
    return job, []


# ---- losses ----


def _lost(job: Job, state: Running, rank: int, reason: str, now: float) -> Outcome:
    """The others go on without it; a warm worker takes the empty place."""
    if rank in state.building:
        return joining.join_failed(job, state, rank, reason)
    if rank not in state.workers:
        return job, []
    placement, was_member = state.workers[rank].placement, rank in state.members
    text = f"{members.named(placement)} is lost: {reason}"
    if not state.plan.elastic:  # a part of the model is lost with it
        return recover(job, text, now)
    state = members.drop(state, rank, text)
    job = replace(job, state=state)
    record = Record("worker_lost", {"reason": text, "rank": rank, "node": placement.node_name})
    if not was_member:
        return job, [record, Enqueue()]
    give_up: list[Command] = [Send(job.attempt, other, GiveUp(key=state.group.key)) for other in state.members]
    job, commands = settle(job, state, now)
    return job, [record, *give_up, *commands, Enqueue()]


def _start_over(job: Job, reason: str, now: float) -> Outcome:
    """Where an attempt can't change its workers, another goes on from the checkpoint. None of its workers failed."""
    return recover(replace(job, fruitless=job.fruitless - 1), reason, now)


def _watch(job: Job, state: Running, now: float) -> Outcome:
    """Once a second: end members that hang. Their loss then comes back as an event, like any other."""
    again = SetTimer(hangs.TICK_S, Tick(job.attempt))
    commands: list[Command] = []
    state = replace(members.excused(state, hangs.overslept(state.looked_at, now)), looked_at=now)
    job = replace(job, state=state)
    for rank, how in hangs.hung(state, now).items():
        commands.append(StopWorkers(job.attempt, (rank,)))
        if isinstance(job.state, Running):  # an unreachable node would never report its end
            job, more = _lost(job, job.state, rank, how, now)
            commands += more
    return job, [*commands, again]


def _too_late(job: Job, late: Late, now: float) -> Outcome:
    state = job.state
    if isinstance(state, Starting) and late.waiting_for == starting.SETUP:
        silent = ", ".join(members.named(placement) for placement, _ in state.building.values())
        return recover(job, f"{silent} did not become ready within {starting.SETUP_BOUND_S:.0f} s", now)
    if isinstance(state, Running) and late.waiting_for == f"peer lost in {waiting_for(state)}":
        return settle(job, state, now, grace_over=True)
    if isinstance(state, Running) and late.waiting_for == waiting_for(state):
        return recover(job, f"no answer in time for {late.waiting_for}", now)
    return joining.join_late(job, state, late.waiting_for) if isinstance(state, Running) else (job, [])


def _name(plan: Plan, rank: int) -> str:
    return next((members.named(worker) for worker in plan.workers if worker.rank == rank), f"rank {rank}")


def resumed(
    id: str,
    submission: Submission,
    attempt: int,
    elapsed_s: float,
    checkpoints: tuple[Checkpoint, ...],
    wish: int | None = None,
    hardware_class: str | None = None,
) -> tuple[Job, list[Command]]:
    """A job that a restarted master finds unfinished: back in the queue, at its last checkpoint."""
    training = checkpoints[0].training if checkpoints else Training()
    job = Job(
        id=id,
        submission=submission,
        state=Waiting("the master was restarted") if attempt else Queued(),
        attempt=attempt,
        elapsed_s=elapsed_s,
        training=training,
        checkpoints=checkpoints,
        wish=wish,
        hardware_class=hardware_class,
    )
    return job, [RollBack(training.step), state_record(job), Enqueue()]
