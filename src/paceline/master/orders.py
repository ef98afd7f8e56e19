"""What a running attempt is to do next: the order of the next round. Pure functions."""

from __future__ import annotations

from dataclasses import replace

from paceline.grid import Grid
from paceline.master import copies, members, poison
from paceline.master.commands import Command, Enqueue, Send, SetTimer
from paceline.master.ends import park, recover
from paceline.master.evaluations import noted
from paceline.master.events import Late
from paceline.master.job import Job, Outcome
from paceline.master.states import Running
from paceline.messages.to_worker import CheckRound, EvaluateRound, Round, SaveRound, TrainRound
from paceline.stop import MaxEpochs, MaxSteps, Progress, StopCondition, fired, leaves

ROUND_TARGET_S = 0.5
CHECKPOINT_EVERY_S, CHECKPOINT_AT_LEAST_EVERY_S = 30.0, 300.0
WRITTEN_WITHIN_S = 600.0


def advance(job: Job, state: Running, now: float) -> Outcome:
    """The next order: evaluate, save or train. Everything that decides it is committed."""
    training = job.training
    check = poison.order_check(state, state.suspected) if state.suspected else None
    if check is not None:
        return _order(job, state, check, now)
    state = replace(state, suspected=None)
    if not state.stopping:
        state = _judge(job, state, now)
    state, changes = members.settle_membership(state, training, job.id, job.attempt)
    unevaluated = training.step > training.evaluated_step
    if unevaluated and (state.stopping or training.step % _eval_every(job, state.grid) == 0):
        if job.submission.val_data is None:
            return after(changes, evaluated(job, state, {}, now))
        if not members.stale(state, training)[0]:
            return after(changes, _order(job, state, EvaluateRound(group=state.group, step=training.step), now))
    elif state.stopping and not members.stale(state, training)[0]:
        kept_earlier = training.best_step is not None and training.best_step != training.step
        group = state.group if state.plan.mode == "sharded" else None
        save = SaveRound(group=group, step=training.step, which="best" if kept_earlier else "last")
        return after(changes, _order(job, state, save, now))
    return after(changes, _order_training(job, state, now))


def after(first: list[Command], outcome: Outcome) -> Outcome:
    """These commands before the outcome's; a job that could use more workers says so between them."""
    job, commands = outcome
    return job, [*first, *([Enqueue()] if job.wanted else []), *commands]


def evaluated(job: Job, state: Running, values: dict[str, float], now: float) -> Outcome:
    """Write what an evaluation found into the history, and go on."""
    job, record = noted(job, state, values, now)
    job, commands = advance(job, state, now)
    return job, [record, *commands]


def _judge(job: Job, state: Running, now: float) -> Running:
    """Whether the stop condition has fired, and whether it would have without the clock."""
    training, stop = job.training, job.submission.options.stop
    seen = Progress(training.step, state.grid.steps_per_epoch, job.trained_s(now), training.history)
    without_clock = fired(stop, replace(seen, elapsed_s=0.0))
    return replace(state, stopping=without_clock or fired(stop, seen), reproducible=bool(without_clock))


def _eval_every(job: Job, grid: Grid) -> int:
    return job.submission.options.eval_every or grid.steps_per_epoch


def _order_training(job: Job, state: Running, now: float) -> Outcome:
    """Train up to the next point where something may be decided; with no steps, only bring everyone to one state."""
    training = job.training
    at = training.step
    behind, source = members.stale(state, training)
    if behind and source is None:
        return recover(job, "no worker holds the committed state", now)
    due_evaluation = at > training.evaluated_step and at % _eval_every(job, state.grid) == 0
    only_copy = bool(state.stopping) or due_evaluation
    leaves = None if only_copy else state.preempted
    if leaves and at == (job.checkpoint.ref.step if job.checkpoint else 0):
        return park(job, leaves, now)
    checkpoint = bool(leaves) or (not only_copy and _checkpoint_due(job, state, now))
    copying = not (only_copy or leaves or checkpoint) and copies.due(job, state, now)
    order = TrainRound(
        group=state.group,
        from_step=at,
        to_step=at if only_copy or leaves else _round_end(job, state),
        mark_best=training.unmarked_best and not only_copy,
        checkpoint=checkpoint,
        copy_shards=copies.order(job, state) if copying else None,
        behind=behind,
        source=source,
        trusted_step=state.trusted_step,
    )
    marked = training.model_copy(update={"unmarked_best": False})  # by this round, before it writes anything
    if copying:
        state = replace(state, copying=marked, copied=frozenset(), copied_at=now, copy_s=0.0)
    if checkpoint:
        state = replace(state, pending=marked, checkpointed_at=now)
    return _order(job, state, order, now)


def _checkpoint_due(job: Job, state: Running, now: float) -> bool:
    at, every = job.training.step, job.submission.options.checkpoint_every
    seldom = min(max(CHECKPOINT_EVERY_S, state.checkpoint_s / copies.SHARE), CHECKPOINT_AT_LEAST_EVERY_S)
    due = at % every == 0 if every else now - state.checkpointed_at >= seldom
    return due and at > 0 and state.pending is None and (job.checkpoint is None or job.checkpoint.ref.step < at)


def _round_end(job: Job, state: Running) -> int:
    """Where the next round ends: after the target time, and wherever something may be decided before."""
    options, at = job.submission.options, job.training.step
    points = [_next_multiple(at, _eval_every(job, state.grid)), at + _round_steps(state)]
    points += [point for point in _stop_steps(options.stop, state.grid) if point > at]
    if options.checkpoint_every:
        points.append(_next_multiple(at, options.checkpoint_every))
    return min(points)


def _next_multiple(at: int, every: int) -> int:
    return (at // every + 1) * every


def _round_steps(state: Running) -> int:
    """One step to begin with, then as many as fill the target time: the master regains control that often.

    A new group begins with one too: the first commit after a loss comes early, and tells how long its steps take.
    """
    return 1 if state.step_s is None or state.rounds == 0 else max(1, round(ROUND_TARGET_S / max(state.step_s, 1e-6)))


def _stop_steps(stop: StopCondition, grid: Grid) -> list[int]:
    """Every step at which a counted leaf may fire: rounds end there, so that it fires on any cluster alike."""
    counted = [leaf for leaf in leaves(stop) if isinstance(leaf, MaxEpochs | MaxSteps)]
    return [leaf.steps if isinstance(leaf, MaxSteps) else leaf.epochs * grid.steps_per_epoch for leaf in counted]


def _order(job: Job, state: Running, order: Round, now: float) -> Outcome:
    state = replace(state, order=order, ordered_at=now, answers={}, lost=())
    commands: list[Command] = [Send(job.attempt, rank, order) for rank in members.asked(state)]
    if only_writes(order):
        commands.append(SetTimer(WRITTEN_WITHIN_S, Late(job.attempt, waiting_for(state))))
    return replace(job, state=state), commands


def only_writes(order: Round | None) -> bool:
    """Whether the round trains no step, and is over once its checkpoint is written."""
    return isinstance(order, TrainRound) and order.checkpoint and order.from_step == order.to_step


def waiting_for(state: Running) -> str:
    """Names the present wait; a bound of an earlier one does not match it."""
    match state.order:
        case TrainRound(from_step=a, to_step=b):
            return f"training steps {a} to {b} of group {state.generation}"
        case CheckRound(step=at, rank=rank):
            return f"a check of rank {rank} in step {at}"
        case EvaluateRound(step=at):
            return f"the evaluation after step {at}"
        case SaveRound(step=at):
            return f"the model after step {at}"
    return "nothing"
