"""The rounds of a running attempt: what their answers commit. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from paceline.grid import Grid
from paceline.master import copies, correcting, members, poison
from paceline.master.commands import Command, Commit, Discard, Record, Send, SetTimer
from paceline.master.committed import Checkpoint
from paceline.master.ends import deliver, end, fall_back, forgo_copies, recover
from paceline.master.evaluations import means
from paceline.master.events import Late
from paceline.master.job import Job, Outcome
from paceline.master.orders import advance, after, evaluated, only_writes, waiting_for
from paceline.master.states import Failed, Running
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

KEPT_CHECKPOINTS = 2
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
    awaited = only_writes(state.order)
    state = replace(state, pending=None, checkpoint_s=now - state.checkpointed_at)
    dropped = tuple(blob for checkpoint in checkpoints[KEPT_CHECKPOINTS:] for blob in checkpoint.ref.blobs)
    job = replace(job, checkpoints=checkpoints[:KEPT_CHECKPOINTS], state=state)
    if job.copies is not None and job.copies.step <= ref.step:
        job = replace(job, copies=None)
    discard: list[Command] = [Discard(dropped)] if dropped else []
    commands: list[Command] = [Record("checkpoint", {"step": ref.step, "nbytes": ref.nbytes}), *discard]
    return after(commands, settle(job, state, now)) if awaited else (job, commands)


def _not_checkpointed(job: Job, state: Running, error: dict[str, Any], now: float) -> Outcome:
    """Training goes on; so a job that was to leave by this checkpoint stays."""
    awaited, state = only_writes(state.order), replace(state, pending=None, preempted=None)
    job, warning = replace(job, state=state), Record("warning", error)
    return after([warning], settle(job, state, now)) if awaited else (job, [warning])


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
    apart = bool(torn) and not state.plan.elastic  # nobody can go on, whoever is still to answer
    if any(rank not in state.answers for rank in asked) and not apart:
        return job, []
    if torn and not state.lost and not grace_over:
        return job, [SetTimer(PEER_LOST_BOUND_S, Late(job.attempt, f"peer lost in {waiting_for(state)}"))]
    if apart:
        return recover(job, f"the workers lost each other: {torn[0]}", now)
    if only_writes(state.order) and state.pending is not None and not torn:
        return job, []
    match state.order:
        case TrainRound() as order:
            return _commit(job, state, order, now)
        case EvaluateRound() if not state.lost:
            answers = {r: a for r, a in state.answers.items() if isinstance(a, Evaluated)}
            longest = max(state.evaluation_s or 0.0, *(answer.seconds for answer in answers.values()))
            state = replace(state, evaluation_s=longest)
            return evaluated(job, state, means(job.submission.facts.values, answers), now)
        case CheckRound(checker=checker):
            checked = state.answers[checker]
            assert isinstance(checked, Checked)
            assert state.suspected is not None
            job, commands = poison.judge(job, state, state.suspected, checked, now)
            return after(commands, advance(job, job.state, now)) if isinstance(job.state, Running) else (job, commands)
        case SaveRound():
            saved = state.answers[asked[0]]
            assert isinstance(saved, Saved)
            return deliver(job, state, saved, now)
    return advance(job, state, now)


def _commit(job: Job, state: Running, order: TrainRound, now: float) -> Outcome:
    """Commit what any survivor completed; those a step behind will copy it."""
    done = {rank: a for rank, a in state.answers.items() if isinstance(a, Trained | Suspected | PeerLost)}
    furthest = max(done.values(), key=lambda answer: len(answer.losses))
    torn = [answer.reason for answer in done.values() if isinstance(answer, PeerLost)]
    state = _with_answers(state, done, now)
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


def _with_answers(state: Running, done: Mapping[int, Trained | Suspected | PeerLost], now: float) -> Running:
    """What the round has shown of its members: how far they are, how fast, and whether they lost each other."""
    workers = dict(state.workers)
    for rank, answer in done.items():
        workers[rank] = replace(workers[rank], step=answer.step)
        if isinstance(answer, Trained):
            workers[rank] = members.note_pace(workers[rank], answer.pace)
    state = replace(state, workers=workers, rounds=state.rounds + 1)
    if any(isinstance(answer, PeerLost) for answer in done.values()):
        return members.broken(state)
    trained = {rank: answer for rank, answer in done.items() if isinstance(answer, Trained)}
    return correcting.observe(state, trained, now) if len(trained) == len(done) else state


def _with_losses(job: Job, grid: Grid, from_step: int, losses: tuple[float, ...]) -> Job:
    """The training after these steps. Losses are added one by one, so that it does not matter how rounds were cut."""
    training = job.training
    loss_sum, samples = training.loss_sum, training.loss_samples
    for at, loss in enumerate(losses, start=from_step):
        loss_sum += loss * grid.batch_len(at)
        samples += grid.batch_len(at)
    changes = {"step": from_step + len(losses), "loss_sum": loss_sum, "loss_samples": samples, "unmarked_best": False}
    return replace(job, training=training.model_copy(update=changes))
