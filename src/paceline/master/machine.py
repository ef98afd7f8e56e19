"""A job's life as a pure function: `job, commands = step(job, event, now)`.

    QUEUED -> STARTING -> RUNNING -> SUCCEEDED
                 \\           |  \\--> FAILED, CANCELLED
                  \\-> RECOVERING -> WAITING -> STARTING (the next attempt)

The controller performs the commands and feeds events back. Time is an argument; there is no I/O and no randomness, so
every race and failure can be tested without a process. A message of an attempt that is not the job's present one
changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ConfigDict

from paceline.errors import DataMismatch, JobFailed, NonFinite
from paceline.grid import Grid
from paceline.messages import (
    CheckpointRef,
    CheckpointWritten,
    Evaluated,
    EvaluateRound,
    Finish,
    FromWorker,
    Group,
    PeerLost,
    Ready,
    Saved,
    SaveRound,
    Setup,
    ToWorker,
    Trained,
    TrainRound,
    Warned,
    WorkerFailed,
    WorkerHello,
)
from paceline.plan import Plan
from paceline.spec import Keep, Submission
from paceline.stop import MaxEpochs, MaxSteps, Progress, StopCondition, fired, improved, leaves

MAX_FRUITLESS_ATTEMPTS = 3
ROUND_TARGET_S = 0.5
CHECKPOINT_EVERY_S = 30.0
SETUP_BOUND_S = 900.0
FIRST_ANSWER_BOUND_S = 600.0
ANSWER_BOUND_S = 60.0
PEER_LOST_BOUND_S = 10.0


class Training(BaseModel):
    """What is committed: it names the model's state exactly, and goes back to a checkpoint's as a whole."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    train_samples: int | None = None
    step: int = 0
    loss_sum: float = 0.0
    loss_samples: int = 0
    evaluated_step: int = 0
    history: tuple[dict[str, float], ...] = ()
    best: float | None = None
    best_step: int | None = None
    unmarked_best: bool = False


class Checkpoint(BaseModel):
    """A published checkpoint and what was committed at its step."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    ref: CheckpointRef
    training: Training


class Delivery(BaseModel):
    """The trained model, as the client will get it."""

    model_config = ConfigDict(frozen=True)

    blob: str
    nbytes: int
    digest: str
    step: int
    stop_reason: str
    reproducible: bool
    irreproducible_because: str | None = None
    hardware_class: str


# ---- states ----


@dataclass(frozen=True)
class Queued:
    """Not started yet."""


@dataclass(frozen=True)
class Starting:
    plan: Plan
    hellos: Mapping[int, str] = field(default_factory=dict)
    ready: Mapping[int, Ready] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """`order` is what all workers (or rank 0, for a save) were asked; `answers` are theirs so far."""

    plan: Plan
    group: Group
    grid: Grid
    hardware_class: str
    since: float
    checkpointed_at: float
    order: TrainRound | EvaluateRound | SaveRound | None = None
    answers: Mapping[int, FromWorker] = field(default_factory=dict)
    failures: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    stopping: tuple[StopCondition, ...] = ()
    reproducible: bool = True
    step_s: float | None = None
    pending: Training | None = None


@dataclass(frozen=True)
class Recovering:
    """The attempt is lost; its last workers are being ended."""

    reason: str


@dataclass(frozen=True)
class Waiting:
    """For nodes to take the next attempt."""

    reason: str


@dataclass(frozen=True)
class Succeeded:
    delivery: Delivery


@dataclass(frozen=True)
class Failed:
    error: dict[str, Any]


@dataclass(frozen=True)
class Cancelled:
    """At the user's word."""


State = Queued | Starting | Running | Recovering | Waiting | Succeeded | Failed | Cancelled
TERMINAL = (Succeeded, Failed, Cancelled)


@dataclass(frozen=True)
class Job:
    """attempt: of the present or last gang start, 0 before the first. fruitless: attempts in a row without a commit."""

    id: str
    submission: Submission
    state: State = field(default_factory=Queued)
    attempt: int = 0
    fruitless: int = 0
    elapsed_s: float = 0.0
    training: Training = field(default_factory=Training)
    checkpoint: Checkpoint | None = None

    @property
    def state_name(self) -> str:
        return type(self.state).__name__.upper()


# ---- events ----


@dataclass(frozen=True)
class Planned:
    plan: Plan


@dataclass(frozen=True)
class Answer:
    """A message of one worker of one attempt."""

    attempt: int
    rank: int
    message: FromWorker


@dataclass(frozen=True)
class Lost:
    """A worker's process ended, or its node is gone."""

    attempt: int
    rank: int
    reason: str


@dataclass(frozen=True)
class AttemptEnded:
    """No worker of the attempt is left."""

    attempt: int


@dataclass(frozen=True)
class Late:
    """The bound of a wait has passed. `waiting_for` tells whether it is still the same wait."""

    attempt: int
    waiting_for: str


@dataclass(frozen=True)
class CancelRequested:
    """By the user."""


Event = Planned | Answer | Lost | AttemptEnded | Late | CancelRequested


# ---- commands ----


@dataclass(frozen=True)
class Enqueue:
    """Plan this job as soon as nodes are free."""


@dataclass(frozen=True)
class StartWorkers:
    attempt: int
    plan: Plan


@dataclass(frozen=True)
class Send:
    attempt: int
    rank: int
    message: ToWorker


@dataclass(frozen=True)
class StopWorkers:
    attempt: int


@dataclass(frozen=True)
class SetTimer:
    seconds: float
    event: Late


@dataclass(frozen=True)
class Commit:
    """Steps [from_step, to_step) are part of the job now: the ledger's entry."""

    attempt: int
    from_step: int
    to_step: int
    samples: int


@dataclass(frozen=True)
class RollBack:
    """Commits from `step` on are undone: the next attempt starts there."""

    step: int


@dataclass(frozen=True)
class Record:
    """A row of the job's history, for whoever watches."""

    kind: str
    data: dict[str, Any] = field(default_factory=dict)


Command = Enqueue | StartWorkers | Send | StopWorkers | SetTimer | Commit | RollBack | Record
Outcome = tuple[Job, list[Command]]


def step(job: Job, event: Event, now: float) -> Outcome:
    """The job after the event, and what to do. Never raises for an event that comes late or twice."""
    if isinstance(job.state, TERMINAL):
        return job, []
    if isinstance(event, Answer | Lost | AttemptEnded | Late) and event.attempt != job.attempt:
        return job, []
    match event, job.state:
        case CancelRequested(), _:
            return _end(job, Cancelled(), now)
        case Planned(plan), Queued() | Waiting():
            return _start(job, plan)
        case Answer(_, rank, message), Starting() as starting:
            return _building(job, starting, rank, message, now)
        case Answer(_, rank, message), Running() as running:
            return _answered(job, running, rank, message, now)
        case Lost(_, rank, reason), Starting() | Running() as state:
            return _recover(job, f"rank {rank} on {_node(state.plan, rank)} is lost: {reason}", now)
        case Late(_, waiting_for), Starting() | Running():
            return _too_late(job, waiting_for, now)
        case AttemptEnded(), Recovering(reason):
            return _rejoin_queue(job, reason)
    return job, []


# ---- starting ----


def _start(job: Job, plan: Plan) -> Outcome:
    attempt = job.attempt + 1
    job = replace(job, attempt=attempt, state=Starting(plan))
    waiting_for = Late(attempt, "setup")
    return job, [
        Record("planned", {"attempt": attempt, "summary": plan.summary}),
        _state_record(job),
        StartWorkers(attempt, plan),
        SetTimer(SETUP_BOUND_S, waiting_for),
    ]


def _building(job: Job, state: Starting, rank: int, message: FromWorker, now: float) -> Outcome:
    match message:
        case WorkerHello():
            hellos = {**state.hellos, rank: message.address}
            return replace(job, state=replace(state, hellos=hellos)), [
                Send(job.attempt, rank, _setup(job, state, rank))
            ]
        case Ready():
            ready = {**state.ready, rank: message}
            job = replace(job, state=replace(state, ready=ready))
            return _begin(job, state, ready, now) if len(ready) == len(state.plan.workers) else (job, [])
        case WorkerFailed(error=error):
            return _end(job, Failed(error), now)
    return job, []


def _setup(job: Job, state: Starting, rank: int) -> Setup:
    return Setup(
        submission=job.submission,
        rank=rank,
        world=len(state.plan.workers),
        device=state.plan.workers[rank].device,
        checkpoint=job.checkpoint.ref if job.checkpoint else None,
    )


def _begin(job: Job, state: Starting, ready: Mapping[int, Ready], now: float) -> Outcome:
    """Everyone is ready: compare what they built, and train."""
    options = job.submission.options
    mismatch = _mismatch(state.plan, ready)
    if mismatch is not None:
        return _end(job, Failed(mismatch.to_json()), now)
    first = ready[0]
    shares = tuple(worker.share for worker in state.plan.workers)
    host = state.hellos.get(0, "127.0.0.1")
    running = Running(
        plan=state.plan,
        group=Group(key=f"{job.id}.{job.attempt}", host=host, port=first.store_port or 0, shares=shares),
        grid=Grid(first.train_samples, options.batch_size, options.microbatches, options.drop_last, options.seed),
        hardware_class=first.hardware_class,
        since=now,
        checkpointed_at=now,
    )
    training = job.training.model_copy(update={"train_samples": first.train_samples})
    job, commands = _advance(replace(job, training=training, state=running), running, now)
    return job, [_state_record(job), *commands]


def _mismatch(plan: Plan, ready: Mapping[int, Ready]) -> DataMismatch | None:
    prints = {rank: answer.fingerprint for rank, answer in sorted(ready.items())}
    if len(set(prints.values())) == 1:
        return None
    by_node = {f"{_node(plan, rank)} (rank {rank})": found for rank, found in prints.items()}
    return DataMismatch(
        "the workers built different data: "
        + "; ".join(f"{node} has {found}" for node, found in by_node.items())
        + ".",
        "Make the builder return the same samples in the same order on every node (sort file lists, fix versions).",
        fingerprints=by_node,
    )


# ---- rounds ----


def _answered(job: Job, state: Running, rank: int, message: FromWorker, now: float) -> Outcome:
    match message:
        case WorkerFailed(error=error):
            return _failed(job, state, rank, error, now)
        case PeerLost(reason=reason):
            return job, [
                Record("peer_lost", {"rank": rank, "reason": reason}),
                SetTimer(PEER_LOST_BOUND_S, Late(job.attempt, f"peer lost at {_waiting_for(state)}")),
            ]
        case CheckpointWritten(checkpoint=ref):
            return _checkpointed(job, state, ref)
        case Warned(error=error):
            return replace(job, state=replace(state, pending=None)), [Record("warning", error)]
        case Trained() | Evaluated() | Saved():
            return _collect(job, state, rank, message, now)
    return job, []


def _failed(job: Job, state: Running, rank: int, error: dict[str, Any], now: float) -> Outcome:
    """A named cause ends the job at once; a worker that could not name one leaves that to the others."""
    if error:
        return _end(job, Failed(error), now)
    failures = {**state.failures, rank: error}
    if len(failures) < len(state.plan.workers):
        return replace(job, state=replace(state, failures=failures)), []
    unnamed = NonFinite(
        f"training became non-finite after step {job.training.step}; a recomputation found no bad microbatch.",
        "Lower the learning rate or set clip_grad_norm=1.0.",
    )
    return _end(job, Failed(unnamed.to_json()), now)


def _checkpointed(job: Job, state: Running, ref: CheckpointRef) -> Outcome:
    if state.pending is None or state.pending.step != ref.step:
        return job, []
    checkpoint = Checkpoint(ref=ref, training=state.pending)
    job = replace(job, checkpoint=checkpoint, state=replace(state, pending=None))
    return job, [Record("checkpoint", {"step": ref.step, "nbytes": ref.nbytes})]


def _collect(job: Job, state: Running, rank: int, message: Trained | Evaluated | Saved, now: float) -> Outcome:
    asked = {TrainRound: Trained, EvaluateRound: Evaluated, SaveRound: Saved}
    if state.order is None or not isinstance(message, asked[type(state.order)]):
        return job, []
    answers = {**state.answers, rank: message}
    state = replace(state, answers=answers)
    job = replace(job, state=state)
    needed = 1 if isinstance(state.order, SaveRound) else len(state.plan.workers)
    if len(answers) < needed:
        return job, []
    match state.order, answers[0]:
        case TrainRound() as order, Trained() as trained:
            return _commit(job, state, order, trained, now)
        case EvaluateRound(), _:
            return _evaluated(job, state, {r: a for r, a in answers.items() if isinstance(a, Evaluated)}, now)
        case SaveRound(), Saved() as saved:
            return _deliver(job, state, saved, now)
    return job, []


def _commit(job: Job, state: Running, order: TrainRound, trained: Trained, now: float) -> Outcome:
    training, grid = job.training, state.grid
    loss_sum, samples = training.loss_sum, training.loss_samples
    for at, loss in enumerate(trained.losses, start=order.from_step):  # one by one, whatever the rounds were
        loss_sum += loss * grid.batch_len(at)
        samples += grid.batch_len(at)
    training = training.model_copy(
        update={"step": order.to_step, "loss_sum": loss_sum, "loss_samples": samples, "unmarked_best": False}
    )
    step_s = trained.seconds / (order.to_step - order.from_step)
    job = replace(job, training=training, fruitless=0, state=replace(state, step_s=step_s))
    data = {"step": order.to_step, "epoch": order.to_step / grid.steps_per_epoch, "loss": trained.losses[-1]}
    data |= {"samples_per_s": trained.samples / max(trained.seconds, 1e-9), "steps_per_epoch": grid.steps_per_epoch}
    commands: list[Command] = [
        Commit(job.attempt, order.from_step, order.to_step, trained.samples),
        Record("progress", data),
    ]
    job, more = _advance(job, replace(state, step_s=step_s), now)
    return job, commands + more


def _evaluated(job: Job, state: Running, answers: Mapping[int, Evaluated], now: float) -> Outcome:
    return _note_values(job, state, _means(job.submission.facts.values, answers), now)


def _means(names: tuple[str, ...], answers: Mapping[int, Evaluated]) -> dict[str, float]:
    """Sample-weighted means over the evaluation grid, summed in its order."""
    finals = {name: value for answer in answers.values() for name, value in answer.finals.items()}
    plain = [name for name in names if name != "loss" and name not in finals]
    sums = [0.0] * (1 + len(plain))
    for answer in sorted(answers.values(), key=lambda a: a.first_cell):
        for row in answer.rows:
            sums = [total + value for total, value in zip(sums, row, strict=True)]
    return {name: total / sums[0] for name, total in zip(plain, sums[1:], strict=True)} | finals


def _note_values(job: Job, state: Running, values: dict[str, float], now: float) -> Outcome:
    """Write an evaluation into the history, and go on."""
    training = job.training
    seconds = job.elapsed_s + now - state.since
    entry = {
        "step": float(training.step),
        "epoch": training.step / state.grid.steps_per_epoch,
        "samples": float(state.grid.samples_seen(training.step)),
        "loss": training.loss_sum / max(training.loss_samples, 1),
        **values,
    }
    keep = Keep.parse(job.submission.options.keep)
    better = keep.metric is not None and improved(entry[keep.metric], training.best, keep.mode)
    training = training.model_copy(
        update={
            "evaluated_step": training.step,
            "history": (*training.history, entry),
            "loss_sum": 0.0,
            "loss_samples": 0,
        }
        | ({"best": entry[keep.metric or ""], "best_step": training.step, "unmarked_best": True} if better else {})
    )
    job = replace(job, training=training)
    job, commands = _advance(job, state, now)
    return job, [Record("evaluated", {**entry, "seconds": seconds}), *commands]


def _advance(job: Job, state: Running, now: float) -> Outcome:
    """The next order: evaluate, save or train. Everything that decides it is committed."""
    training = job.training
    if not state.stopping:
        state = _judge(job, state, now)
    unevaluated = training.step > training.evaluated_step
    if unevaluated and (state.stopping or training.step % _eval_every(job, state.grid) == 0):
        if job.submission.val_data is None:
            return _note_values(job, state, {}, now)
        return _order(job, state, EvaluateRound(group=state.group, step=training.step))
    if state.stopping:
        kept_earlier = training.best_step is not None and training.best_step != training.step
        return _order(job, state, SaveRound(step=training.step, which="best" if kept_earlier else "last"))
    return _order_training(job, state, now)


def _judge(job: Job, state: Running, now: float) -> Running:
    """Whether the stop condition has fired, and whether it would have without the clock."""
    training, stop = job.training, job.submission.options.stop
    seen = Progress(training.step, state.grid.steps_per_epoch, job.elapsed_s + now - state.since, training.history)
    without_clock = fired(stop, replace(seen, elapsed_s=0.0))
    return replace(state, stopping=without_clock or fired(stop, seen), reproducible=bool(without_clock))


def _eval_every(job: Job, grid: Grid) -> int:
    return job.submission.options.eval_every or grid.steps_per_epoch


def _order_training(job: Job, state: Running, now: float) -> Outcome:
    training, options = job.training, job.submission.options
    at = training.step
    points = [_next_multiple(at, _eval_every(job, state.grid)), at + _round_steps(state)]
    points += [point for point in _stop_steps(options.stop, state.grid) if point > at]
    if options.checkpoint_every:
        points.append(_next_multiple(at, options.checkpoint_every))
    due = (
        at % options.checkpoint_every == 0
        if options.checkpoint_every
        else now - state.checkpointed_at >= CHECKPOINT_EVERY_S
    )
    checkpoint = due and at > 0 and state.pending is None and (job.checkpoint is None or job.checkpoint.ref.step < at)
    order = TrainRound(
        group=state.group, from_step=at, to_step=min(points), mark_best=training.unmarked_best, checkpoint=checkpoint
    )
    if checkpoint:
        marked = training.model_copy(update={"unmarked_best": False})
        state = replace(state, pending=marked, checkpointed_at=now)
    return _order(job, state, order)


def _next_multiple(at: int, every: int) -> int:
    return (at // every + 1) * every


def _round_steps(state: Running) -> int:
    """One step to begin with, then as many as fill the target time: the master regains control that often."""
    return 1 if state.step_s is None else max(1, round(ROUND_TARGET_S / max(state.step_s, 1e-6)))


def _stop_steps(stop: StopCondition, grid: Grid) -> list[int]:
    """Every step at which a counted leaf may fire: rounds end there, so that it fires on any cluster alike."""
    counted = [leaf for leaf in leaves(stop) if isinstance(leaf, MaxEpochs | MaxSteps)]
    return [leaf.steps if isinstance(leaf, MaxSteps) else leaf.epochs * grid.steps_per_epoch for leaf in counted]


def _order(job: Job, state: Running, order: TrainRound | EvaluateRound | SaveRound) -> Outcome:
    state = replace(state, order=order, answers={})
    ranks = [0] if isinstance(order, SaveRound) else [worker.rank for worker in state.plan.workers]
    bound = FIRST_ANSWER_BOUND_S
    if isinstance(order, TrainRound) and state.step_s is not None:
        bound = max(ANSWER_BOUND_S, 20 * state.step_s * (order.to_step - order.from_step))
    commands: list[Command] = [Send(job.attempt, rank, order) for rank in ranks]
    return replace(job, state=state), [*commands, SetTimer(bound, Late(job.attempt, _waiting_for(state)))]


def _waiting_for(state: Starting | Running) -> str:
    """Names the present wait; a bound of an earlier one does not match it."""
    if isinstance(state, Starting):
        return "setup"
    match state.order:
        case TrainRound(from_step=a, to_step=b):
            return f"training steps {a} to {b}"
        case EvaluateRound(step=at):
            return f"the evaluation after step {at}"
        case SaveRound(step=at):
            return f"the model after step {at}"
    return "nothing"


# ---- ends ----


def _deliver(job: Job, state: Running, saved: Saved, now: float) -> Outcome:
    seconds = job.elapsed_s + now - state.since
    reason = " and ".join(map(str, state.stopping)) + f" at step {job.training.step}"
    because = None if state.reproducible else f"wall time ended the job ({reason}, {seconds:.1f} s)"
    delivery = Delivery(
        blob=saved.blob,
        nbytes=saved.nbytes,
        digest=saved.digest,
        step=job.training.best_step or saved.step,
        stop_reason=reason,
        reproducible=state.reproducible and job.submission.options.reproducible,
        irreproducible_because=because or (None if job.submission.options.reproducible else "reproducible=False"),
        hardware_class=state.hardware_class,
    )
    job = replace(job, elapsed_s=seconds, state=Succeeded(delivery))
    finish: list[Command] = [Send(job.attempt, worker.rank, Finish()) for worker in state.plan.workers]
    return job, [_state_record(job), *finish]


def _end(job: Job, state: Failed | Cancelled, now: float) -> Outcome:
    stops: list[Command] = [StopWorkers(job.attempt)] if job.attempt else []
    job = replace(_stop_clock(job, now), state=state)
    return job, [_state_record(job), *stops]


def _too_late(job: Job, waiting_for: str, now: float) -> Outcome:
    state = job.state
    assert isinstance(state, Starting | Running)
    present = _waiting_for(state)
    if waiting_for not in (present, f"peer lost at {present}"):
        return job, []
    answered = state.ready if isinstance(state, Starting) else state.answers
    silent = [w for w in state.plan.workers if w.rank not in answered]
    names = ", ".join(f"rank {w.rank} on {w.node_name}" for w in silent)
    return _recover(job, f"no answer in time from {names} for {waiting_for}", now)


def _recover(job: Job, reason: str, now: float) -> Outcome:
    """Give the attempt up. Too many in a row without a commit, and the job fails."""
    fruitless = job.fruitless + 1
    if fruitless >= MAX_FRUITLESS_ATTEMPTS:
        error = JobFailed(
            f"{fruitless} attempts in a row ended without a commit; the last: {reason}.",
            "See `paceline logs` for what the workers printed; a worker that the system killed may lack memory.",
        )
        return _end(job, Failed(error.to_json()), now)
    stopped = _stop_clock(job, now)
    job = replace(stopped, fruitless=fruitless, state=Recovering(reason))
    return job, [Record("worker_lost", {"reason": reason}), _state_record(job), StopWorkers(job.attempt)]


def _rejoin_queue(job: Job, reason: str) -> Outcome:
    training = job.checkpoint.training if job.checkpoint else Training()
    job = replace(job, training=training, state=Waiting(reason))
    return job, [RollBack(training.step), _state_record(job), Enqueue()]


def _stop_clock(job: Job, now: float) -> Job:
    if isinstance(job.state, Running):
        return replace(job, elapsed_s=job.elapsed_s + now - job.state.since)
    return job


def _node(plan: Plan, rank: int) -> str:
    return plan.workers[rank].node_name if rank < len(plan.workers) else "an unknown node"


def _state_record(job: Job) -> Record:
    data: dict[str, Any] = {"state": job.state_name, "attempt": job.attempt}
    match job.state:
        case Failed(error):
            data["error"] = error
        case Recovering(reason) | Waiting(reason):
            data["reason"] = reason
        case Succeeded(delivery):
            data["stop_reason"] = delivery.stop_reason
    return Record("state", data)


def resumed(
    id: str, submission: Submission, attempt: int, elapsed_s: float, checkpoint: Checkpoint | None
) -> tuple[Job, list[Command]]:
    """A job that a restarted master finds unfinished: back in the queue, at its last checkpoint."""
    training = checkpoint.training if checkpoint else Training()
    job = Job(
        id=id, submission=submission, attempt=attempt, elapsed_s=elapsed_s, training=training, checkpoint=checkpoint,
        state=Waiting("the master was restarted") if attempt else Queued(),
    )  # fmt: skip
    return job, [RollBack(training.step), _state_record(job), Enqueue()]
