"""Whether a running job would be faster on other nodes: pure, from what it has shown, each answer with its numbers.

A step takes as long as its slowest member works, and then the part of the exchange that nothing hides; how that would
change with other members is predicted (`planner/predict.py`). A change must make a step clearly faster, and win back
over the steps to go more than it costs: what is within the noise is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from paceline.plan import Node
from paceline.planner.predict import Slot, predict
from paceline.planner.profiles import Workload
from paceline.shares import split_by_speed

CLEAR_GAIN = 0.1  # of a step's time: measured speeds are off by half of that
WORTH = 2.0  # times what a change costs, that it must win back
STRAGGLES = 1.5  # times the others' median for a microbatch
STRAGGLES_NO_MORE = 1.25
MOST_SINGLES = 8  # members that are looked at one by one: the slowest


@dataclass(frozen=True)
class Member:
    """A worker. cell_s: its seconds for a microbatch; rest_s: for what else it does in a step, exchanges aside."""

    rank: int
    slot: Slot
    cell_s: float
    rest_s: float

    @property
    def node(self) -> Node:
        return self.slot.node

    @property
    def name(self) -> str:
        return f"rank {self.rank} on {self.node.name}"


@dataclass(frozen=True)
class Course:
    """How a job goes. step_s, exchange_s: measured of a step, and of its exchange what nothing hides.

    change_s: what a change of members costs. steps_to_go: to the known bound. measured: what a step took with other
    members, by their nodes' ids, sorted.
    """

    work: Workload
    members: tuple[Member, ...]
    step_s: float
    exchange_s: float
    change_s: float
    steps_to_go: float
    measured: Mapping[tuple[str, ...], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Gain:
    """What a change is predicted to bring. change_s: its cost. saves_s: over the steps to go, the cost deducted."""

    step_s: float
    predicted_step_s: float
    change_s: float
    steps_to_go: float

    @property
    def saves_s(self) -> float:
        return (self.step_s - self.predicted_step_s) * self.steps_to_go - self.change_s

    @property
    def is_clear(self) -> bool:
        faster = self.predicted_step_s < (1 - CLEAR_GAIN) * self.step_s
        return faster and self.saves_s > (WORTH - 1) * self.change_s

    def __str__(self) -> str:
        return (
            f"a step is predicted to take {self.predicted_step_s:.3g} s instead of {self.step_s:.3g} s, which saves "
            f"{self.saves_s:.3g} s over the {self.steps_to_go:.0f} steps to go, {self.change_s:.2g} s for the change "
            "deducted"
        )


@dataclass(frozen=True)
class Keep:
    """The members that there are."""

    reason: str


@dataclass(frozen=True)
class Drop:
    """Go on without these ranks."""

    ranks: tuple[int, ...]
    gain: Gain
    reason: str


@dataclass(frozen=True)
class Add:
    """Take this node in."""

    node: str
    gain: Gain
    reason: str


@dataclass(frozen=True)
class Straggler:
    """A member that is slow beside the others. costs_s: of each step, by the best shares with and without that."""

    member: Member
    others_cell_s: float
    costs_s: float
    step_s: float

    @property
    def reason(self) -> str:
        return (
            f"{self.member.name} takes {self.member.cell_s:.3g} s for a microbatch, where the others' median is "
            f"{self.others_cell_s:.3g} s; that costs {self.costs_s:.2g} s of each step's {self.step_s:.3g} s"
        )


def reconsider(course: Course) -> Keep | Drop:
    """Whether to go on without some of the members: any one of them, or the slowest few."""
    by_speed = sorted(course.members, key=lambda member: (-member.cell_s - member.rest_s, -member.rank))
    if len(by_speed) == 1:
        return Keep("a job needs one worker")
    choices = [*([member] for member in by_speed[:MOST_SINGLES]), *(by_speed[:-kept] for kept in _kept(len(by_speed)))]
    found = [(predicted_step_s(course, _without(course, some)), len(some), some) for some in choices]
    some = min(found, key=lambda choice: choice[:2])[2]
    gain = _gain(course, _without(course, some))
    text = f"without {', '.join(member.name for member in some)} {gain}"
    return Drop(tuple(member.rank for member in some), gain, text) if gain.is_clear else Keep(text)


def _kept(members: int) -> list[int]:
    """How many of so many may stay: of few each number, of more each half of the one before."""
    return [kept for kept in range(1, members) if members <= MOST_SINGLES or kept & (kept - 1) == 0]


def worth_adding(course: Course, newcomer: Member) -> Keep | Add:
    """Whether one more worker makes the job clearly faster."""
    gain = _gain(course, (*course.members, newcomer))
    text = f"with {newcomer.node.name} {gain}"
    return Add(newcomer.node.name, gain, text) if gain.is_clear else Keep(text)


def stragglers(course: Course, known: frozenset[int] = frozenset()) -> list[Straggler]:
    """Members whose microbatches take clearly longer than the others'; one that is `known` stays so for a while."""
    found = []
    for member in course.members:
        others = [other.cell_s for other in course.members if other is not member]
        if not others:
            continue
        usual_s = median(others)
        if member.cell_s > (STRAGGLES_NO_MORE if member.rank in known else STRAGGLES) * usual_s:
            as_usual = [replace(m, cell_s=usual_s) if m is member else m for m in course.members]
            now_s, then_s = (_working(course, some)[0] for some in (course.members, as_usual))
            found.append(Straggler(member, usual_s, max(0.0, now_s - then_s), course.step_s))
    return found


def predicted_step_s(course: Course, members: Sequence[Member]) -> float:
    """Seconds of a step of these members: as measured where they were tried, else as their own times have it."""
    tried_s = measured_s(course, members)
    return _modelled_s(course, members) if tried_s is None else tried_s


def _gain(course: Course, members: Sequence[Member]) -> Gain:
    """Of going on with these. Shares that do not fit the present members' speeds yet are no reason to change these."""
    present_s = min(course.step_s, _modelled_s(course, course.members))
    return Gain(present_s, predicted_step_s(course, members), course.change_s, course.steps_to_go)


def _modelled_s(course: Course, members: Sequence[Member]) -> float:
    """Seconds of a step of these members, with the shares that they would get.

    The exchange changes from what it was measured to be as it would be predicted to; a lone worker's is predicted.
    """
    working_s, predicted_s = _working(course, members)
    _, present_s = _working(course, course.members)
    if present_s:
        return working_s + course.exchange_s * predicted_s / present_s
    return working_s + predicted_s


def measured_s(course: Course, members: Sequence[Member]) -> float | None:
    """What a step took with these members' nodes; None where they were not tried."""
    return course.measured.get(tuple(sorted(member.node.id for member in members)))


def _working(course: Course, members: Sequence[Member]) -> tuple[float, float]:
    """(seconds until the last of these members has worked, predicted ones of their exchange that nothing hides)."""
    cell_s = [member.cell_s for member in members]
    shares = split_by_speed(course.work.options.microbatches, cell_s)
    sizes = [end - first for first, end in shares]
    working_s = max(size * member.cell_s + member.rest_s for size, member in zip(sizes, members, strict=True))
    predicted = predict(course.work, [member.slot for member in members], shares, cell_s)
    return working_s, predicted.exchange_s - predicted.hidden_s


def _without(course: Course, some: Sequence[Member]) -> list[Member]:
    return [member for member in course.members if member not in some]
