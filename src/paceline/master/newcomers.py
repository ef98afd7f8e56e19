"""Which node gives a running job its next worker, if any does. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from statistics import fmean

from paceline.errors import Unplaceable
from paceline.master.correcting import course_of, is_fixed
from paceline.master.job import Job
from paceline.master.states import Running
from paceline.plan import Node, Placement
from paceline.planner.growth import one_more
from paceline.planner.predict import Slot
from paceline.planner.reconsider import Add, Course, Member, measured_s, worth_adding

MOST_CANDIDATES = 16  # nodes that are looked at for one more worker: the fastest ones


@dataclass(frozen=True)
class Newcomer:
    """cell_s: seconds that a cell is expected to take there; None where nothing tells. decision: None where the place
    of one that is lost, or was asked for, is filled.
    """

    placement: Placement
    node: Node
    cell_s: float | None
    decision: Add | None = None


def next_worker(job: Job, nodes: Sequence[Node], now: float) -> Newcomer | None:
    """As many as were planned, or asked for, come as soon as there is room; more, where that makes the job faster."""
    state = job.state
    assert isinstance(state, Running)
    if is_fixed(job) or state.staying < state.shown.enough:
        open_to = nodes if is_fixed(job) else [node for node in nodes if _may_be_asked(state, node.id, now)]
        place = _place(job, state, open_to)
        return _newcomer(job, state, nodes, place) if place else None
    course = course_of(job, state, now)
    if course is None or state.building or state.leaving:
        return None
    free = [node for node in nodes if node.free_cores >= job.submission.options.threads]
    candidates = nlargest(MOST_CANDIDATES, free, key=lambda node: max((c.flop_per_s for c in node.speed), default=0.0))
    judged = [_judged(job, state, course, node, now) for node in candidates]
    worth = [(one.decision.gain.predicted_step_s, one.node.id, one) for one in judged if one and one.decision]
    return min(worth, key=lambda choice: choice[:2])[2] if worth else None


def _judged(job: Job, state: Running, course: Course, node: Node, now: float) -> Newcomer | None:
    """A place on this node with what it is predicted to bring; None where there is none, or it brings too little."""
    place = _place(job, state, [node])
    if place is None:
        return None
    newcomer = _newcomer(job, state, [node], place)
    typical = fmean(member.cell_s for member in course.members)
    cell_s = newcomer.cell_s or typical
    rest_s = fmean(member.rest_s for member in course.members) * cell_s / typical
    member = Member(state.next_rank, Slot(node, place.device), cell_s, rest_s)
    if not _may_be_asked(state, node.id, now) and measured_s(course, (*course.members, member)) is None:
        return None
    decision = worth_adding(course, member)
    return replace(newcomer, decision=decision) if isinstance(decision, Add) else None


def _newcomer(job: Job, state: Running, nodes: Sequence[Node], place: Placement) -> Newcomer:
    node = next(node for node in nodes if node.id == place.node_id)
    return Newcomer(place, node, _expected(state, [*job.nodes.values(), node], node.id))


def _may_be_asked(state: Running, node_id: str, now: float) -> bool:
    return now >= state.shown.set_aside.get(node_id, now)


def _place(job: Job, state: Running, nodes: Sequence[Node]) -> Placement | None:
    try:
        return one_more(nodes, state.plan, job.submission.options, job.submission.facts, job.known, job.wish)
    except Unplaceable:
        return None


def _expected(state: Running, nodes: Sequence[Node], node_id: str) -> float | None:
    """What a cell takes on a node: as it did in this job, or else by the calibrated speeds of it and of the others."""
    measured = state.shown.node_cell_s
    if node_id in measured:
        return measured[node_id]
    kind = state.plan.workers[0].kind
    speeds = {node.id: speed for node in nodes if (speed := node.speed_of(kind))}
    if node_id not in speeds:
        return None
    flop = [cell_s * speeds[other] for other, cell_s in measured.items() if other in speeds]
    return fmean(flop) / speeds[node_id] if flop else None
