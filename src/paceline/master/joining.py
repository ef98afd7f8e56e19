"""Workers that come to a running attempt, and those that are asked to leave it. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from paceline.master import correcting, members
from paceline.master.commands import Command, Enqueue, Record, Send, SetTimer, StartWorkers, StopWorkers
from paceline.master.events import Late, Recruited
from paceline.master.job import MAX_FAILED_JOINS, Job, Outcome
from paceline.master.starting import SETUP_BOUND_S, built, greeted, mismatch, setup_of
from paceline.master.states import Running
from paceline.messages.from_worker import FromWorker, Ready, WorkerFailed, WorkerHello

JOIN_PAUSE_S = 600.0
JOIN_PAUSE = f"the pause after {MAX_FAILED_JOINS} failed joins"


def recruit(job: Job, state: Running, recruited: Recruited) -> Outcome:
    """Start one more worker beside the running ones; it joins at a round's end once it is ready."""
    # ranks are never used twice in an attempt: a late word of a dead worker must not match a living one
    placement = recruited.placement.model_copy(update={"rank": state.next_rank})
    building = {**state.building, placement.rank: (placement, "")}
    shown, told = state.shown, list[Command]()
    if recruited.cell_s is not None:
        shown = replace(shown, node_cell_s={**shown.node_cell_s, placement.node_id: recruited.cell_s})
    if recruited.decision is not None:
        shown = replace(shown, enough=len(state.workers) + len(building))
        told.append(correcting.record_of(recruited.decision, [recruited.decision.node]))
    nodes = {**job.nodes, recruited.node.id: recruited.node} if recruited.node else job.nodes
    state = replace(state, building=building, next_rank=state.next_rank + 1, shown=shown)
    job = replace(job, state=state, nodes=nodes)
    bound = SetTimer(SETUP_BOUND_S, Late(job.attempt, _setup_wait(placement.rank)))
    more: list[Command] = [Enqueue()] if job.wanted else []
    return job, [*told, StartWorkers(job.attempt, (placement,)), bound, *more]


def _setup_wait(rank: int) -> str:
    return f"setup of rank {rank}"


def join(job: Job, state: Running, rank: int, message: FromWorker, now: float) -> Outcome:
    """A message of a worker that is to join and is not ready yet."""
    match message:
        case WorkerHello():
            state = replace(state, building=greeted(state.building, rank, message))
            # no checkpoint: by the time it is ready there may be a newer one, and it copies a member's state anyway
            setup = setup_of(job, state.plan, state.building[rank][0], None)
            return replace(job, state=state), [Send(job.attempt, rank, setup)]
        case Ready():
            if message.fingerprint != state.fingerprint:
                names = {
                    members.named(state.building[rank][0]): message.fingerprint,
                    "the workers before it": state.fingerprint,
                }
                return _refused(job, state, rank, mismatch(names).to_json())
            building, worker = built(state.building, rank, message, 0, now)
            workers = {**state.workers, rank: worker}
            return replace(job, state=replace(state, building=building, workers=workers, failed_joins=0)), []
        case WorkerFailed(error=error):
            return _refused(job, state, rank, error)
    return job, []


def _refused(job: Job, state: Running, rank: int, error: Mapping[str, Any]) -> Outcome:
    """What is wrong lies at its node, it may be: the members built what they were told to, and train."""
    job, commands = join_failed(job, state, rank, error.get("fact", "it failed"), error)
    return job, [StopWorkers(job.attempt, (rank,)), *commands]


def join_failed(job: Job, state: Running, rank: int, reason: str, error: Mapping[str, Any] | None = None) -> Outcome:
    """One that was to join is gone. Another is looked for; after some in a row, only when a pause is over.

    error: what it answered, a PacelineError's JSON.
    """
    placement, _ = state.building[rank]
    text = f"{members.named(placement)} is lost before it joined: {reason}"
    state = replace(members.drop(state, rank, text), failed_joins=state.failed_joins + 1)
    details = {"error": dict(error)} if error else {}
    record = Record("worker_lost", {"reason": text, "rank": rank, "node": placement.node_name, **details})
    pauses = state.failed_joins == MAX_FAILED_JOINS
    pause: list[Command] = [SetTimer(JOIN_PAUSE_S, Late(job.attempt, JOIN_PAUSE))] if pauses else []
    return replace(job, state=state), [record, *pause, Enqueue()]


def join_late(job: Job, state: Running, waiting_for: str) -> Outcome:
    """A bound of a worker that is to join, or of the pause in looking for one, has passed."""
    if waiting_for == JOIN_PAUSE:
        return replace(job, state=replace(state, failed_joins=0)), [Enqueue()]
    late = next((rank for rank in state.building if waiting_for == _setup_wait(rank)), None)
    if late is None:
        return job, []
    job, commands = join_failed(job, state, late, f"it did not become ready within {SETUP_BOUND_S:.0f} s")
    return job, [StopWorkers(job.attempt, (late,)), *commands]


def scale(job: Job, state: Running, workers: int) -> Outcome:
    """Train with so many workers from the next round on, and in attempts to come."""
    state, dropped = members.resize(replace(state, failed_joins=0), workers)
    job = replace(job, wish=workers, state=state)
    return job, [Record("scaled", {"workers": state.target}), *_released(job, dropped), Enqueue()]


def drain(job: Job, state: Running, node_id: str) -> Outcome:
    """The node's workers leave: members as soon as others can go on, one that is still building at once."""
    there, building = members.on_node(state, node_id)
    if not building and not there - state.leaving:
        return job, []
    for rank in building:
        state = members.drop(state, rank, "released")
    job = replace(job, state=replace(state, leaving=state.leaving | there))
    record = Record("draining", {"node": node_id, "ranks": sorted({*there, *building})})
    return job, [record, *_released(job, tuple(sorted(building))), Enqueue()]


def _released(job: Job, ranks: tuple[int, ...]) -> list[Command]:
    if not ranks:
        return []
    return [StopWorkers(job.attempt, ranks), *(Record("worker_released", {"rank": rank}) for rank in ranks)]
