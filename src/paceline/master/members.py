"""Who trains: losses, joins, leaves, shares. Pure functions of a running job's state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from paceline.master.commands import Command, Record, StopWorkers
from paceline.master.committed import Training
from paceline.master.states import Running, Worker
from paceline.messages.from_worker import Beat, Pace
from paceline.messages.to_worker import CheckRound, Group, SaveRound
from paceline.plan import Placement
from paceline.shares import Share, slowest, split_by_speed

SMOOTHING = 0.3
FORGETTING = 0.01  # of the time for a cell, each round in which a worker has none: half of it in a minute at most
REBALANCE_GAIN = 0.1
FIRST_ROUNDS = 2


def form(state: Running, job_id: str, attempt: int, members: Sequence[int]) -> Running:
    """A new group of these members, with shares by their speed."""
    first = state.workers[members[0]]
    group = Group(
        key=f"{job_id}.{attempt}.{state.generation + 1}",
        host=first.address,
        port=first.store_port,
        members=tuple(members),
        shares=(),
    )
    state = replace(state, members=tuple(members), group=group, generation=state.generation + 1, rounds=0)
    return _share(state, _shares_by_speed(state))


def _shares_by_speed(state: Running) -> Sequence[Share]:
    """By measured speeds, of a newcomer by that of its node; as planned until one is measured."""
    workers = [state.workers[rank] for rank in state.members]
    speeds = [worker.cell_s or state.shown.node_cell_s.get(worker.placement.node_id) for worker in workers]
    if not any(speeds) and state.members == tuple(placement.rank for placement in state.plan.workers):
        return [placement.share for placement in state.plan.workers]
    return split_by_speed(state.plan.microbatches, speeds)


def _share(state: Running, shares: Sequence[Share]) -> Running:
    """The same group, whose members take these shares from now on."""
    workers = dict(state.workers)
    for rank, share in zip(state.members, shares, strict=True):
        placement = workers[rank].placement.model_copy(update={"rank": rank, "share": share})
        workers[rank] = replace(workers[rank], placement=placement)
    plan = state.plan.model_copy(update={"workers": tuple(workers[rank].placement for rank in state.members)})
    group = state.group.model_copy(update={"shares": tuple(shares)})
    return replace(state, workers=workers, plan=plan, group=group, shown=state.shown.anew())


def drop(state: Running, rank: int, reason: str) -> Running:
    """A worker is gone: a member, one that was about to join, or one still building. The first writes checkpoints."""
    workers = {r: worker for r, worker in state.workers.items() if r != rank}
    building = {r: started for r, started in state.building.items() if r != rank}
    members = tuple(r for r in state.members if r != rank)
    lost = (*state.lost, reason) if rank in state.members else state.lost
    answers = {r: answer for r, answer in state.answers.items() if r != rank}
    return replace(
        state,
        workers=workers,
        building=building,
        members=members,
        lost=lost,
        answers=answers,
        leaving=state.leaving - {rank},
        pending=None if state.members[:1] == (rank,) else state.pending,
    )


def resize(state: Running, workers: int) -> tuple[Running, tuple[int, ...]]:
    """(the state with this many workers as its target, who is to be stopped).

    Those that do not train yet go first, and at once; members leave as soon as they can be spared.
    """
    target = min(workers, state.plan.microbatches)
    members = [rank for rank in state.members if rank not in state.leaving]
    ready = [rank for rank in sorted(state.workers) if rank not in (*state.members, *state.leaving)]
    surplus = [*members, *ready, *sorted(state.building)][target:]
    dropped = tuple(rank for rank in surplus if rank not in members)
    for rank in dropped:
        state = drop(state, rank, "released")
    return replace(state, target=target, leaving=state.leaving | (set(surplus) & set(members))), dropped


def broken(state: Running) -> Running:
    """The members lost each other: whoever is left needs a new group, even if they are the same."""
    return replace(state, group=state.group.model_copy(update={"members": ()}))


def settle_membership(state: Running, training: Training, job_id: str, attempt: int) -> tuple[Running, list[Command]]:
    """Between rounds: take in who is ready, release who leaves, and form a new group if anything changed."""
    joining = [rank for rank in sorted(state.workers) if rank not in (*state.members, *state.leaving)]
    releasing = state.leaving & set(state.workers) - _needed(state, training, joining)
    staying = [rank for rank in state.members if rank not in releasing]
    joining = joining[: max(0, state.plan.microbatches - len(staying))]
    members = [*staying, *joining]
    commands: list[Command] = []
    for rank in sorted(releasing):
        commands += [StopWorkers(attempt, (rank,)), Record("worker_released", {"rank": rank})]
        state = drop(state, rank, "released")
    state = replace(state, lost=())
    if tuple(members) != state.group.members:
        for rank in joining:
            commands.append(Record("worker_joined", {"rank": rank, "node": state.workers[rank].placement.node_name}))
        return form(state, job_id, attempt, members), commands
    return _rebalanced(state), commands


def _needed(state: Running, training: Training, joining: Sequence[int]) -> set[int]:
    """Members that can't leave yet: somebody must go on, and somebody must hold the state for the others to copy."""
    staying = [rank for rank in state.members if rank not in state.leaving]
    if not staying and not joining:
        return set(state.members)
    holders = [rank for rank in state.members if state.workers[rank].step == training.step]
    return set(holders[:1]) - set(staying) if not set(holders) & set(staying) else set()


def _rebalanced(state: Running) -> Running:
    """Other shares, where the measured speeds promise a clear gain. The group stays as it is formed.

    Sharded workers make as many passes each, whatever their shares.
    """
    if state.plan.mode == "sharded":
        return state
    known = [seconds for rank in state.members if (seconds := state.workers[rank].cell_s)]
    if len(known) < len(state.members) or len(known) < 2 or state.rounds < FIRST_ROUNDS:
        return state
    better = split_by_speed(state.plan.microbatches, known)
    if slowest(better, known) < (1 - REBALANCE_GAIN) * slowest(state.group.shares, known):
        return _share(state, better)
    return state


def stale(state: Running, training: Training) -> tuple[tuple[int, ...], int | None]:
    """(members whose state is not the committed one, a member to copy it from)."""
    behind = tuple(rank for rank in state.members if state.workers[rank].step != training.step)
    source = next((rank for rank in state.members if rank not in behind), None)
    return behind, source if behind else None


def note_pace(worker: Worker, pace: Pace) -> Worker:
    """Fold a round's measured times into the worker's."""
    if not pace.steps:
        return worker
    rest_s = max(0.0, pace.seconds - pace.busy_s - pace.waited_s) / pace.steps
    worker = replace(worker, rest_s=smoothed(worker.rest_s, rest_s))
    if pace.cells:
        return replace(worker, cell_s=smoothed(worker.cell_s, pace.busy_s / pace.cells))
    if worker.cell_s is None:
        return worker
    return replace(worker, cell_s=(1 - FORGETTING) * worker.cell_s)  # it may have become faster: some day it is tried


def smoothed(before: float | None, seconds: float) -> float:
    return seconds if before is None else (1 - SMOOTHING) * before + SMOOTHING * seconds


def note_beat(worker: Worker, beat: Beat, now: float) -> Worker:
    """What the worker said of itself. Only a changed counter is progress."""
    counter = (beat.step, beat.cells, beat.carried)
    moved_at = now if counter != worker.counter or beat.phase != worker.phase else worker.moved_at
    return replace(worker, counter=counter, moved_at=moved_at, beat_at=now, phase=beat.phase, stack=beat.stack)


def excused(state: Running, seconds: float) -> Running:
    """So many seconds of silence and standstill were nobody's fault."""
    if not seconds:
        return state
    workers = {
        rank: replace(worker, beat_at=worker.beat_at + seconds, moved_at=worker.moved_at + seconds)
        for rank, worker in state.workers.items()
    }
    return replace(state, workers=workers)


def on_node(state: Running, node_id: str) -> tuple[set[int], set[int]]:
    """(ranks of the node's workers that are ready, ranks of those that still build)."""
    ready = {rank for rank, worker in state.workers.items() if worker.placement.node_id == node_id}
    return ready, {rank for rank, (placement, _) in state.building.items() if placement.node_id == node_id}


def asked(state: Running) -> tuple[int, ...]:
    """Members that are to answer the present order."""
    if isinstance(state.order, CheckRound):
        return (state.order.checker,)
    alone = isinstance(state.order, SaveRound) and state.order.group is None
    return state.members[:1] if alone else state.members


def named(placement: Placement) -> str:
    return f"rank {placement.rank} on {placement.node_name}"
