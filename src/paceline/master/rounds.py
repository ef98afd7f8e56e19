"""The rounds of a running attempt: what to ask next, and what the answers commit. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from paceline.grid import Grid
from paceline.master import copies, correcting, members, poison
from paceline.master.commands import Command, Commit, Discard, Enqueue, Record, Send, SetTimer, StopWorkers
from paceline.master.committed import Checkpoint
from paceline.master.delivery import Delivery
from paceline.master.ends import discard_checkpoints, end, fall_back, forgo_copies, park, recover, state_record
from paceline.master.events import Late
from paceline.master.job import Job, Outcome
from paceline.master.profiles import taught
from paceline.master.states import Failed, Running, Succeeded
from paceline.messages.from_worker import (
    Beat,
    Checked,
    CheckpointWritten,
    Copied,
    Evaluated,
    FromWorker,
    PeerLost,
    Saved,
    Suspected,
    Trained,
    Unloadable,
    Warned,
    WorkerFailed,
)
from paceline.messages.message import CheckpointRef
from paceline.messages.to_worker import CheckRound, EvaluateRound, GiveUp, SaveRound, TrainRound
from paceline.spec import Keep
from paceline.stop import MaxEpochs, MaxSteps, Progress, StopCondition, fired, improved, leaves

ROUND_TARGET_S = 0.5
CHECKPOINT_EVERY_S = 30.0
KEPT_CHECKPOINTS = 2
SAVE_BOUND_S = 600.0
PEER_LOST_BOUND_S = 3.0
MAX_TORN_ROUNDS = 5


def answered(job: Job, state: Running, rank: int, message: FromWorker, now: float) -> Outcome:
    """A member's message."""
    match message:
        case Beat():
            worker = members.note_beat(state.workers[rank], message, now)
            return replace(job, state=replace(state, workers={**state.workers, rank: worker})), []
        case WorkerFailed(error=error):
            return end(job, Failed(error), now)
        case Unloadable(step=at, reason=reason) if job.copies is not None and job.copies.step == at:
            return forgo_copies(job, reason, now)
        case Unloadable(step=at, reason=reason) if job.checkpoint is not None and job.checkpoint.ref.step == at:
            return fall_back(job, reason, now)
        case Copied() as copied if state.copying is not None and copied.step == state.copying.step:
            return copies.copied(job, state, rank, copied)
        case CheckpointWritten(checkpoint=ref):
            return _checkpointed(job, state, ref, now)
        case Warned(error=error):
            return _not_checkpointed(job, state, error, now)
        case Trained() | Suspected() | Checked() | Evaluated() | Saved() | PeerLost() if _expected(
            state, rank, message
        ):
            state = replace(state, answers={**state.answers, rank: message})
            others = [r for r in state.members if r not in state.answers] if isinstance(message, PeerLost) else []
            # who still waits in the torn exchange may never notice by itself
            give_up: list[Command] = [Send(job.attempt, other, GiveUp(key=state.group.key)) for other in others]
            job, commands = settle(replace(job, state=state), state, now)
            return job, [*give_up, *commands]
    return job, []


def _expected(state: Running, rank: int, message: FromWorker) -> bool:
    if rank not in state.members or rank in state.answers:
        return False
    if isinstance(message, PeerLost) and state.plan.mode == "sharded":  # there, all orders are exchanges
        return True
    match state.order:
        case TrainRound(from_step=at):
            return isinstance(message, PeerLost) or (
                isinstance(message, Trained | Suspected) and message.from_step == at
            )
        case CheckRound(step=at, checker=checker):
            return isinstance(message, Checked) and message.step == at and rank == checker
        case EvaluateRound(step=at):
            return isinstance(message, Evaluated) and message.step == at
        case SaveRound():
            return isinstance(message, Saved)
    return False


def _checkpointed(job: Job, state: Running, ref: CheckpointRef, now: float) -> Outcome:
    if state.pending is None or state.pending.step != ref.step:
        return job, []
    checkpoints = (Checkpoint(ref=ref, training=state.pending), *job.checkpoints)
    awaited, state = _only_writes(state.order), replace(state, pending=None)
    dropped = tuple(blob for checkpoint in checkpoints[KEPT_CHECKPOINTS:] for blob in checkpoint.ref.blobs)
    job = replace(job, checkpoints=checkpoints[:KEPT_CHECKPOINTS], state=state)
    if job.copies is not None and job.copies.step <= ref.step:
        job = replace(job, copies=None)
    discard: list[Command] = [Discard(dropped)] if dropped else []
    commands: list[Command] = [Record("checkpoint", {"step": ref.step, "nbytes": ref.nbytes}), *discard]
    return _after(commands, settle(job, state, now)) if awaited else (job, commands)


def _not_checkpointed(job: Job, state: Running, error: dict[str, Any], now: float) -> Outcome:
    """Training goes on; so a job that was to leave by this checkpoint stays."""
    awaited, state = _only_writes(state.order), replace(state, pending=None, preempted=None)
    job, warning = replace(job, state=state), Record("warning", error)
    return _after([warning], settle(job, state, now)) if awaited else (job, [warning])


def _only_writes(order: TrainRound | CheckRound | EvaluateRound | SaveRound | None) -> bool:
    """Whether the round trains no step, and is over once its checkpoint is written."""
    return isinstance(order, TrainRound) and order.checkpoint and order.from_step == order.to_step


# ---- the end of a round ----


def settle(job: Job, state: Running, now: float, grace_over: bool = False) -> Outcome:
    """Go on once everyone who is left has answered. A lost peer is waited for: who it was, its agent will tell."""
    if not state.members:
        return recover(job, state.lost[-1] if state.lost else "no worker is left", now)
    if isinstance(state.order, SaveRound) and state.members[0] != state.group.members[0]:
        return advance(job, state, now)  # the one that was asked is gone: ask the next
    if isinstance(state.order, CheckRound) and not {state.order.checker, state.order.rank} <= set(state.members):
        return advance(job, state, now)
    asked = members.asked(state)
    torn = [answer.reason for answer in state.answers.values() if isinstance(answer, PeerLost)]
    sharded_apart = bool(torn) and state.plan.mode == "sharded"  # nobody can go on, whoever is still to answer
    if any(rank not in state.answers for rank in asked) and not sharded_apart:
        return job, []
    if torn and not state.lost and not grace_over:
        return job, [SetTimer(PEER_LOST_BOUND_S, Late(job.attempt, f"peer lost in {waiting_for(state)}"))]
    if sharded_apart:
        return recover(job, f"the workers lost each other: {torn[0]}", now)
    if _only_writes(state.order) and state.pending is not None and not torn:
        return job, []
    match state.order:
        case TrainRound() as order:
            return _commit(job, state, order, now)
        case EvaluateRound() if not state.lost:
            answers = {r: a for r, a in state.answers.items() if isinstance(a, Evaluated)}
            longest = max(state.evaluation_s or 0.0, *(answer.seconds for answer in answers.values()))
            state = replace(state, evaluation_s=longest)
            return _note_values(job, state, _means(job.submission.facts.values, answers), now)
        case CheckRound(checker=checker):
            checked = state.answers[checker]
            assert isinstance(checked, Checked)
            assert state.suspected is not None
            job, commands = poison.judge(job, state, state.suspected, checked, now)
            return _after(commands, advance(job, job.state, now)) if isinstance(job.state, Running) else (job, commands)
        case SaveRound():
            saved = state.answers[asked[0]]
            assert isinstance(saved, Saved)
            return _deliver(job, state, saved, now)
    return advance(job, state, now)


def _commit(job: Job, state: Running, order: TrainRound, now: float) -> Outcome:
    """Commit what any survivor completed; those a step behind will copy it."""
    done = {rank: a for rank, a in state.answers.items() if isinstance(a, Trained | Suspected | PeerLost)}
    workers = dict(state.workers)
    for rank, answer in done.items():
        workers[rank] = replace(workers[rank], step=answer.step)
        if isinstance(answer, Trained):
            workers[rank] = members.note_pace(workers[rank], answer.pace)
    furthest = max(done.values(), key=lambda answer: len(answer.losses))
    state = replace(state, workers=workers, rounds=state.rounds + 1)
    torn = [answer.reason for answer in done.values() if isinstance(answer, PeerLost)]
    if torn:
        state = members.broken(state)
    elif all(isinstance(answer, Trained) for answer in done.values()):
        state = correcting.observe(state, {rank: a for rank, a in done.items() if isinstance(a, Trained)}, now)
    if furthest.losses or not torn:
        state = replace(state, torn=0)
    elif not state.lost:  # a death explains itself, and is bounded by the attempts
        state = replace(state, torn=state.torn + 1)
    if order.checkpoint and not furthest.losses:
        state = replace(state, pending=None)  # it may not have got so far as to write it
    if isinstance(furthest, Trained) and furthest.losses:
        state = replace(state, step_s=furthest.seconds / len(furthest.losses))
    suspected = poison.suspicion_of(state) if not torn else None
    state = replace(state, suspected=suspected)
    if suspected is not None and not suspected.suspects:
        return poison.unnamed(replace(job, state=state), suspected, now)
    if state.torn >= MAX_TORN_ROUNDS:
        return recover(job, f"the workers lost each other {state.torn} times in a row; the last: {torn[-1]}", now)
    if not furthest.losses:
        return advance(replace(job, state=state), state, now)
    to_step = order.from_step + len(furthest.losses)
    job = _with_losses(job, state.grid, order.from_step, furthest.losses)
    samples = state.grid.samples_seen(to_step) - state.grid.samples_seen(order.from_step)
    seconds = max(now - state.ordered_at, 1e-9)
    data = {"step": to_step, "epoch": to_step / state.grid.steps_per_epoch, "loss": furthest.losses[-1]}
    data |= {"samples_per_s": samples / seconds, "steps_per_epoch": state.grid.steps_per_epoch}
    if to_step > job.furthest:
        job = replace(job, furthest=to_step, fruitless=0)
    state, told = (state, []) if torn else correcting.correct(job, state, now)
    job, commands = advance(replace(job, state=state), state, now)
    return job, [Commit(job.attempt, order.from_step, to_step, samples), Record("progress", data), *told, *commands]


def _with_losses(job: Job, grid: Grid, from_step: int, losses: tuple[float, ...]) -> Job:
    """The training after these steps. Losses are added one by one, so that it does not matter how rounds were cut."""
    training = job.training
    loss_sum, samples = training.loss_sum, training.loss_samples
    for at, loss in enumerate(losses, start=from_step):
        loss_sum += loss * grid.batch_len(at)
        samples += grid.batch_len(at)
    changes = {"step": from_step + len(losses), "loss_sum": loss_sum, "loss_samples": samples, "unmarked_best": False}
    return replace(job, training=training.model_copy(update=changes))


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
    changes: dict[str, Any] = {
        "evaluated_step": training.step,
        "history": (*training.history, entry),
        "loss_sum": 0.0,
        "loss_samples": 0,
    }
    if keep.metric is not None and improved(entry[keep.metric], training.best, keep.mode):
        changes |= {"best": entry[keep.metric], "best_step": training.step, "unmarked_best": True}
    job = replace(job, training=training.model_copy(update=changes))
    job, commands = advance(job, state, now)
    return job, [Record("evaluated", {**entry, "seconds": seconds}), *commands]


# ---- the next order ----


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
            return _after(changes, _note_values(job, state, {}, now))
        if not members.stale(state, training)[0]:
            return _after(changes, _order(job, state, EvaluateRound(group=state.group, step=training.step), now))
    elif state.stopping and not members.stale(state, training)[0]:
        kept_earlier = training.best_step is not None and training.best_step != training.step
        group = state.group if state.plan.mode == "sharded" else None
        save = SaveRound(group=group, step=training.step, which="best" if kept_earlier else "last")
        return _after(changes, _order(job, state, save, now))
    return _after(changes, _order_training(job, state, now))


def _after(first: list[Command], outcome: Outcome) -> Outcome:
    job, commands = outcome
    return job, [*first, *([Enqueue()] if job.wanted else []), *commands]


def _judge(job: Job, state: Running, now: float) -> Running:
    """Whether the stop condition has fired, and whether it would have without the clock."""
    training, stop = job.training, job.submission.options.stop
    elapsed_s = job.elapsed_s + now - state.since
    seen = Progress(training.step, state.grid.steps_per_epoch, elapsed_s, training.history)
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
    if copying:
        marked = training.model_copy(update={"unmarked_best": False})
        state = replace(state, copying=marked, copied=frozenset(), copied_at=now, copy_s=0.0)
    if checkpoint:
        marked = training.model_copy(update={"unmarked_best": False})
        state = replace(state, pending=marked, checkpointed_at=now)
    return _order(job, state, order, now)


def _checkpoint_due(job: Job, state: Running, now: float) -> bool:
    at, every = job.training.step, job.submission.options.checkpoint_every
    due = at % every == 0 if every else now - state.checkpointed_at >= CHECKPOINT_EVERY_S
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


def _order(job: Job, state: Running, order: TrainRound | CheckRound | EvaluateRound | SaveRound, now: float) -> Outcome:
    state = replace(state, order=order, ordered_at=now, answers={}, lost=())
    commands: list[Command] = [Send(job.attempt, rank, order) for rank in members.asked(state)]
    if isinstance(order, SaveRound) or _only_writes(order):
        commands.append(SetTimer(SAVE_BOUND_S, Late(job.attempt, waiting_for(state))))
    return replace(job, state=state), commands


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


def _deliver(job: Job, state: Running, saved: Saved, now: float) -> Outcome:
    options = job.submission.options
    seconds = job.elapsed_s + now - state.since
    reason = " and ".join(map(str, state.stopping)) + f" at step {job.training.step}"
    because = None if state.reproducible else f"wall time ended the job ({reason}, {seconds:.1f} s)"
    if state.plan.mode == "sharded":
        because = because or "a sharded model equals an exactly trained one within float error"
    delivery = Delivery(
        blob=saved.blob,
        files=saved.files,
        nbytes=saved.nbytes,
        digest=saved.digest,
        step=job.training.best_step or saved.step,
        stop_reason=reason,
        reproducible=because is None and options.reproducible,
        irreproducible_because=because or (None if options.reproducible else "reproducible=False"),
        hardware_class=state.plan.hardware_class,
    )
    learned = taught(job, state)
    job = replace(job, elapsed_s=seconds, state=Succeeded(delivery))
    return job, [state_record(job), StopWorkers(job.attempt), *discard_checkpoints(job), *learned]
