"""Who trains: losses, joins, leaves, shares. Pure functions of a running job's state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from paceline.master.states import Command, Record, Running, StopWorkers, Training, Worker
from paceline.messages import Beat, CheckRound, Group, SaveRound, Trained
from paceline.plan import Placement
from paceline.shares import slowest, split_by_speed

SMOOTHING = 0.3
REBALANCE_GAIN = 0.1
FIRST_ROUNDS = 2


def form(state: Running, job_id: str, attempt: int, members: Sequence[int]) -> Running:
    """A new group of these members, with shares by their speed."""
    placed = {rank: state.workers[rank] for rank in members}
    shares = split_by_speed(state.plan.microbatches, [placed[rank].cell_s for rank in members])
    first = placed[members[0]]
    group = Group(
        key=f"{job_id}.{attempt}.{state.generation + 1}",
        host=first.address,
        port=first.store_port,
        members=tuple(members),
        shares=tuple(shares),
    )
    workers = dict(state.workers)
    for rank, share in zip(members, shares, strict=True):
        placement = workers[rank].placement.model_copy(update={"rank": rank, "share": share})
        workers[rank] = replace(workers[rank], placement=placement)
    plan = state.plan.model_copy(update={"workers": tuple(workers[rank].placement for rank in members)})
    return replace(
        state,
        members=tuple(members),
        group=group,
        generation=state.generation + 1,
        workers=workers,
        plan=plan,
        rounds=0,
    )


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
    return _rebalanced(state, job_id, attempt), commands


def _needed(state: Running, training: Training, joining: Sequence[int]) -> set[int]:
    """Members that can't leave yet: somebody must go on, and somebody must hold the state for the others to copy."""
    staying = [rank for rank in state.members if rank not in state.leaving]
    if not staying and not joining:
        return set(state.members)
    holders = [rank for rank in state.members if state.workers[rank].step == training.step]
    return set(holders[:1]) - set(staying) if not set(holders) & set(staying) else set()


def _rebalanced(state: Running, job_id: str, attempt: int) -> Running:
    """Other shares, where the measured speeds promise a clear gain."""
    if state.plan.mode == "sharded":
        return state
    speeds = [state.workers[rank].cell_s for rank in state.members]
    known = [seconds for seconds in speeds if seconds]
    if len(known) < len(speeds) or len(speeds) < 2 or state.rounds < FIRST_ROUNDS:
        return state
    better = split_by_speed(state.plan.microbatches, speeds)
    if slowest(better, known) < (1 - REBALANCE_GAIN) * slowest(state.group.shares, known):
        return form(state, job_id, attempt, state.members)
    return state


def stale(state: Running, training: Training) -> tuple[tuple[int, ...], int | None]:
    """(members whose state is not the committed one, a member to copy it from)."""
    behind = tuple(rank for rank in state.members if state.workers[rank].step != training.step)
    source = next((rank for rank in state.members if rank not in behind), None)
    return behind, source if behind else None


def note_speed(worker: Worker, trained: Trained) -> Worker:
    """Fold a round's measured compute time into the worker's speed."""
    if not trained.cells:
        return worker
    seconds = trained.busy_s / trained.cells
    smoothed = seconds if worker.cell_s is None else (1 - SMOOTHING) * worker.cell_s + SMOOTHING * seconds
    return replace(worker, cell_s=smoothed)


def note_beat(worker: Worker, beat: Beat, now: float) -> Worker:
    """What the worker said of itself. Only a changed counter is progress."""
    counter = (beat.step, beat.cells)
    moved_at = now if counter != worker.counter or beat.phase != worker.phase else worker.moved_at
    return replace(worker, counter=counter, moved_at=moved_at, beat_at=now, phase=beat.phase, stack=beat.stack)


def on_node(state: Running, node_id: str) -> tuple[set[int], set[int]]:
    """(ranks of the node's workers that are ready, ranks of those that still build)."""
    ready = {rank for rank, worker in state.workers.items() if worker.placement.node_id == node_id}
    return ready, {rank for rank, (placement, _) in state.building.items() if placement.node_id == node_id}


def asked(state: Running) -> tuple[int, ...]:
    """Members that are to answer the present order."""
    if isinstance(state.order, CheckRound):
        return (state.order.checker,)
    alone = isinstance(state.order, SaveRound) and state.plan.mode == "exact"
    return state.members[:1] if alone else state.members


def named(placement: Placement) -> str:
    return f"rank {placement.rank} on {placement.node_name}"
