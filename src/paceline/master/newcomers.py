"""Which node gives a running job its next worker, if any does. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from paceline.errors import Unplaceable
from paceline.master.correcting import course_of, is_fixed, numbers
from paceline.master.states import Job, Running
from paceline.plan import Node, Placement
from paceline.planner.planner import one_more
from paceline.planner.reconsider import CLEAR_GAIN, Add, Course, Gain, Member, worth_adding


@dataclass(frozen=True)
class Newcomer:
    """cell_s: seconds that a cell is expected to take there; None where nothing tells. because: of a decision, what its
    record says; None where the place of one that is lost, or was asked for, is filled.
    """

    placement: Placement
    cell_s: float | None
    because: dict[str, Any] | None = None


def next_worker(job: Job, nodes: Sequence[Node], now: float) -> Newcomer | None:
    """As many as were planned, or asked for, come as soon as there is room; more, where that makes the job faster."""
    state = job.state
    assert isinstance(state, Running)
    staying = len(set(state.workers) - state.leaving) + len(state.building)
    if is_fixed(job) or staying < state.shown.enough:
        open_to = nodes if is_fixed(job) else [node for node in nodes if _may_be_asked(state, node.id, now)]
        place = _place(job, state, open_to)
        return Newcomer(place, _expected(state, nodes, place.node_id)) if place else None
    course = course_of(job, state, now)
    if course is None or state.building or state.leaving:
        return None
    found = [_judged(job, state, course, nodes, node, now) for node in nodes]
    worth = [(add.gain.predicted_step_s, place.node_id, place, add) for place, add in filter(None, found)]
    if not worth:
        return None
    _, node_id, place, add = min(worth, key=lambda choice: choice[:2])
    because = {"change": "add", **numbers(add.gain, [add.node], add.reason)}
    return Newcomer(place, _expected(state, nodes, node_id), because)


def _judged(
    job: Job, state: Running, course: Course, nodes: Sequence[Node], node: Node, now: float
) -> tuple[Placement, Add] | None:
    """A place on this node and what it is predicted to bring; None where there is none, or it brings too little."""
    place = _place(job, state, [node])
    if place is None:
        return None
    if not _may_be_asked(state, node.id, now):
        decision = _was_faster(state, course, node)
    else:
        typical = fmean(member.cell_s for member in course.members)
        cell_s = _expected(state, nodes, node.id) or typical
        rest_s = fmean(member.rest_s for member in course.members) * cell_s / typical
        decision = worth_adding(course, Member(state.next_rank, node.id, node.name, cell_s, rest_s, 0))
    return (place, decision) if isinstance(decision, Add) else None


def _was_faster(state: Running, course: Course, node: Node) -> Add | None:
    """A node that was set aside comes back at once where the job turned out to be slower without it."""
    aside = state.shown.set_aside[node.id]
    gain = Gain(course.step_s, aside.step_s, course.change_s, course.steps_to_go)
    return Add(node.name, gain, f"with {node.name}, as before, {gain}") if gain.is_clear else None


def _may_be_asked(state: Running, node_id: str, now: float) -> bool:
    aside = state.shown.set_aside.get(node_id)
    return aside is None or now >= aside.until


def _place(job: Job, state: Running, nodes: Sequence[Node]) -> Placement | None:
    try:
        return one_more(nodes, state.plan, job.submission.options, job.submission.facts)
    except Unplaceable:
        return None


def _expected(state: Running, nodes: Sequence[Node], node_id: str) -> float | None:
    """What a cell takes on a node: as it did in this job, or else by the calibrated speeds of it and of the others."""
    measured = state.shown.node_cell_s
    if node_id in measured:
        return measured[node_id]
    speeds = _speeds(nodes, state.plan.workers[0].device.split(":")[0])
    if node_id not in speeds:
        return None
    flop = [cell_s * speeds[other] for other, cell_s in measured.items() if other in speeds]
    return fmean(flop) / speeds[node_id] if flop else None


def _speeds(nodes: Sequence[Node], kind: str) -> Mapping[str, float]:
    """FLOP/s by node id, of the slowest device of the kind, where calibrated."""
    found = {node.id: [c.flop_per_s for c in node.speed if c.device.split(":")[0] == kind] for node in nodes}
    return {node_id: min(rates) for node_id, rates in found.items() if rates}
