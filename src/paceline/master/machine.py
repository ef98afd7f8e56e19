"""A job's life as a pure function: `job, commands = step(job, event, now)`.

    QUEUED -> STARTING -> RUNNING -> SUCCEEDED
                 \\           |  \\--> FAILED, CANCELLED
                  \\-> RECOVERING -> WAITING -> STARTING (the next attempt)

The controller performs the commands and feeds events back. Time is an argument; there is no I/O and no randomness, so
every race and failure can be tested without a process. A message of an attempt that is not the job's present one
changes nothing. While one worker is left, a loss stays inside RUNNING: the survivors form a new group (`members.py`)
and go on; RECOVERING is for an attempt that nobody survived.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from paceline.errors import DataMismatch
from paceline.grid import Grid
from paceline.master import members
from paceline.master.ends import end, recover, rejoin_queue, state_record
from paceline.master.rounds import advance, answered, settle, waiting_for
from paceline.master.states import (
    TERMINAL,
    Answer,
    AttemptEnded,
    Cancelled,
    CancelRequested,
    Checkpoint,
    Command,
    Enqueue,
    Event,
    Failed,
    Job,
    Late,
    Lost,
    NodeDraining,
    Outcome,
    Planned,
    Queued,
    Record,
    Recovering,
    Recruited,
    RollBack,
    Running,
    ScaleRequested,
    Send,
    SetTimer,
    Starting,
    StartWorkers,
    StopWorkers,
    Tick,
    Training,
    Waiting,
    Worker,
)
from paceline.messages import FromWorker, GiveUp, Group, Ready, Setup, WorkerFailed, WorkerHello
from paceline.plan import Placement, Plan
from paceline.spec import Submission

SETUP_BOUND_S = 900.0
TICK_S = 1.0


def step(job: Job, event: Event, now: float) -> Outcome:
    """The job after the event, and what to do. Never raises for an event that comes late or twice."""
    if isinstance(job.state, TERMINAL):
        return job, []
    if isinstance(event, Recruited | Answer | Lost | AttemptEnded | Late | Tick) and event.attempt != job.attempt:
        return job, []
    match event, job.state:
        case CancelRequested(), _:
            return end(job, Cancelled(), now)
        case Planned(plan), Queued() | Waiting():
            return _start(job, plan)
        case Answer(_, rank, message), Starting() as starting if rank in starting.building:
            return _building(job, starting, rank, message, now)
        case Answer(_, rank, message), Running() as running if rank in running.building:
            return _joining(job, running, rank, message, now)
        case Answer(_, rank, message), Running() as running if rank in running.workers:
            return answered(job, running, rank, message, now)
        case Lost(_, rank, reason), Starting() as starting:
            return recover(job, f"{_name(starting.plan, rank)} is lost: {reason}", now)
        case Lost(_, rank, reason), Running() as running:
            return _lost(job, running, rank, reason, now)
        case Late(), Starting() | Running():
            return _too_late(job, event, now)
        case Tick(), Running() as running:
            return _watch(job, running, now)
        case AttemptEnded(), Recovering(reason):
            return rejoin_queue(job, reason)
        case Recruited(_, placement), Running() as running if job.wanted:
            return _recruit(job, running, placement)
        case ScaleRequested(workers), Running() as running:
            return _scale(job, running, workers)
        case NodeDraining(node_id), Running() as running:
            return _drain(job, running, node_id)
    return job, []


# ---- starting ----


def _start(job: Job, plan: Plan) -> Outcome:
    attempt = job.attempt + 1
    building = {placement.rank: (placement, "") for placement in plan.workers}
    job = replace(job, attempt=attempt, fruitless=job.fruitless + 1, state=Starting(plan, building))
    return job, [
        Record("planned", {"attempt": attempt, "summary": plan.summary}),
        state_record(job),
        StartWorkers(attempt, plan.workers),
        SetTimer(SETUP_BOUND_S, Late(attempt, "setup")),
    ]


def _building(job: Job, state: Starting, rank: int, message: FromWorker, now: float) -> Outcome:
    match message:
        case WorkerHello():
            state = replace(state, building=_greeted(state.building, rank, message))
            setup = _setup(job, state.building[rank][0], job.checkpoint)
            return replace(job, state=state), [Send(job.attempt, rank, setup)]
        case Ready():
            building, worker = _built(state.building, rank, message, job.checkpoint, now)
            state = replace(
                state,
                building=building,
                workers={**state.workers, rank: worker},
                fingerprints={**state.fingerprints, rank: message.fingerprint},
            )
            job = replace(job, state=state)
            return (job, []) if building else _begin(job, state, message, now)
        case WorkerFailed(error=error):
            return end(job, Failed(error), now)
    return job, []


def _greeted(
    building: Mapping[int, tuple[Placement, str]], rank: int, hello: WorkerHello
) -> dict[int, tuple[Placement, str]]:
    return {**building, rank: (building[rank][0], hello.address)}


def _built(
    building: Mapping[int, tuple[Placement, str]], rank: int, ready: Ready, loaded: Checkpoint | None, now: float
) -> tuple[dict[int, tuple[Placement, str]], Worker]:
    """The others that are still building, and the worker that is ready."""
    placement, address = building[rank]
    at = loaded.ref.step if loaded else 0
    worker = Worker(placement, address, ready.store_port, step=at, moved_at=now, beat_at=now)
    return {r: started for r, started in building.items() if r != rank}, worker


def _setup(job: Job, placement: Placement, load: Checkpoint | None) -> Setup:
    return Setup(
        submission=job.submission,
        rank=placement.rank,
        device=placement.device,
        checkpoint=load.ref if load else None,
    )


def _begin(job: Job, state: Starting, ready: Ready, now: float) -> Outcome:
    """Everyone is ready: compare what they built, and train."""
    options = job.submission.options
    names = {members.named(worker.placement): state.fingerprints[rank] for rank, worker in state.workers.items()}
    if len(set(names.values())) > 1:
        return end(job, Failed(_mismatch(names).to_json()), now)
    ranks = tuple(sorted(state.workers))
    running = Running(
        plan=state.plan,
        grid=Grid(ready.train_samples, options.batch_size, options.microbatches, options.drop_last, options.seed),
        fingerprint=ready.fingerprint,
        members=ranks,
        workers=state.workers,
        group=Group(key="", host="", port=0, members=(), shares=()),
        since=now,
        checkpointed_at=now,
        target=max(len(ranks), state.plan.most_workers),
        next_rank=len(ranks),
    )
    running = members.form(running, job.id, job.attempt, ranks)
    training = job.training.model_copy(update={"train_samples": ready.train_samples})
    job = replace(job, training=training, state=running)
    announcement = state_record(job)
    job, commands = advance(job, running, now)
    return job, [announcement, *commands, SetTimer(TICK_S, Tick(job.attempt))]


def _mismatch(fingerprints: Mapping[str, str]) -> DataMismatch:
    found = "; ".join(f"{name} has {fingerprint}" for name, fingerprint in sorted(fingerprints.items()))
    return DataMismatch(
        f"the workers built different data: {found}.",
        "Make the builder return the same samples in the same order on every node (sort file lists, fix versions).",
        fingerprints=dict(fingerprints),
    )


# ---- joining and leaving ----


def _recruit(job: Job, state: Running, placement: Placement) -> Outcome:
    """Start one more worker beside the running ones; it joins at a round's end once it is ready."""
    # ranks are never used twice in an attempt: a late word of a dead worker must not match a living one
    placement = placement.model_copy(update={"rank": state.next_rank})
    building = {**state.building, placement.rank: (placement, "")}
    job = replace(job, state=replace(state, building=building, next_rank=state.next_rank + 1))
    more: list[Command] = [Enqueue()] if job.wanted else []
    late = SetTimer(SETUP_BOUND_S, Late(job.attempt, _setup_of(placement.rank)))
    return job, [StartWorkers(job.attempt, (placement,)), late, *more]


def _setup_of(rank: int) -> str:
    return f"the setup of rank {rank}"


def _joining(job: Job, state: Running, rank: int, message: FromWorker, now: float) -> Outcome:
    match message:
        case WorkerHello():
            state = replace(state, building=_greeted(state.building, rank, message))
            # no checkpoint: by the time it is ready there may be a newer one, and it copies a member's state anyway
            return replace(job, state=state), [Send(job.attempt, rank, _setup(job, state.building[rank][0], None))]
        case Ready():
            if message.fingerprint != state.fingerprint:
                names = {
                    members.named(state.building[rank][0]): message.fingerprint,
                    "the workers before it": state.fingerprint,
                }
                return end(job, Failed(_mismatch(names).to_json()), now)
            building, worker = _built(state.building, rank, message, None, now)
            workers = {**state.workers, rank: worker}
            return replace(job, state=replace(state, building=building, workers=workers)), []
        case WorkerFailed(error=error):
            return end(job, Failed(error), now)
    return job, []


def _scale(job: Job, state: Running, workers: int) -> Outcome:
    target = min(workers, state.plan.microbatches)
    keep = [rank for rank in state.members if rank not in state.leaving]
    leaving = state.leaving | frozenset(keep[target:])
    job = replace(job, state=replace(state, target=target, leaving=leaving))
    return job, [Record("scaled", {"workers": target}), Enqueue()]


def _drain(job: Job, state: Running, node_id: str) -> Outcome:
    there = {rank for rank, worker in state.workers.items() if worker.placement.node_id == node_id}
    if not there - state.leaving:
        return job, []
    job = replace(job, state=replace(state, leaving=state.leaving | there))
    return job, [Record("draining", {"node": node_id, "ranks": sorted(there)}), Enqueue()]


# ---- losses ----


def _lost(job: Job, state: Running, rank: int, reason: str, now: float) -> Outcome:
    """The others go on without it; a warm worker takes the empty place."""
    known = state.workers.get(rank)
    placement = known.placement if known else state.building[rank][0] if rank in state.building else None
    if placement is None:
        return job, []
    was_member = rank in state.members
    text = f"{members.named(placement)} is lost: {reason}"
    state = members.drop(state, rank, text)
    job = replace(job, state=state)
    record = Record("worker_lost", {"reason": text, "rank": rank, "node": placement.node_name})
    if not was_member:
        return job, [record, Enqueue()]
    give_up: list[Command] = [Send(job.attempt, other, GiveUp(key=state.group.key)) for other in state.members]
    job, commands = settle(job, state, now)
    return job, [record, *give_up, *commands, Enqueue()]


def _watch(job: Job, state: Running, now: float) -> Outcome:
    """Once a second: end members that hang. Their loss then comes back as an event, like any other."""
    again = SetTimer(TICK_S, Tick(job.attempt))
    commands: list[Command] = []
    for rank, how in members.hung(state, now).items():
        commands.append(StopWorkers(job.attempt, (rank,)))
        if isinstance(job.state, Running):  # an unreachable node would never report its end
            job, more = _lost(job, job.state, rank, how, now)
            commands += more
    return job, [*commands, again]


def _too_late(job: Job, late: Late, now: float) -> Outcome:
    state = job.state
    assert isinstance(state, Starting | Running)
    if isinstance(state, Starting) and late.waiting_for == "setup":
        silent = ", ".join(members.named(placement) for placement, _ in state.building.values())
        return recover(job, f"{silent} did not become ready within {SETUP_BOUND_S:.0f} s", now)
    overdue = [rank for rank in state.building if late.waiting_for == _setup_of(rank)]
    if isinstance(state, Running) and overdue:  # its place is held, and one that leaves may wait for it
        job, commands = _lost(job, state, overdue[0], f"it did not become ready within {SETUP_BOUND_S:.0f} s", now)
        return job, [StopWorkers(job.attempt, (overdue[0],)), *commands]
    if isinstance(state, Running) and late.waiting_for == f"peer lost in {waiting_for(state)}":
        return settle(job, state, now, grace_over=True)
    if isinstance(state, Running) and late.waiting_for == waiting_for(state):
        return recover(job, f"no answer in time for {late.waiting_for}", now)
    return job, []


def _name(plan: Plan, rank: int) -> str:
    return next((members.named(worker) for worker in plan.workers if worker.rank == rank), f"rank {rank}")


def resumed(
    id: str, submission: Submission, attempt: int, elapsed_s: float, checkpoint: Checkpoint | None
) -> tuple[Job, list[Command]]:
    """A job that a restarted master finds unfinished: back in the queue, at its last checkpoint."""
    training = checkpoint.training if checkpoint else Training()
    job = Job(
        id=id,
        submission=submission,
        state=Waiting("the master was restarted") if attempt else Queued(),
        attempt=attempt,
        elapsed_s=elapsed_s,
        training=training,
        checkpoint=checkpoint,
    )
    return job, [RollBack(training.step), state_record(job), Enqueue()]
