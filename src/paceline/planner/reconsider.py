"""Whether a running job would be faster on other nodes: pure, from what it has shown, each answer with its numbers.

A step takes as long as its slowest member works, and then the part of the exchange that nothing hides. A change must
make a step clearly faster, and win back over the steps to go more than it costs: what is within the noise is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median

from paceline.measured import Link

CLEAR_GAIN = 0.1  # of a step's time: measured speeds are off by half of that
WORTH = 2.0  # times what a change costs, that it must win back
STRAGGLES = 1.5  # times the others' median for a microbatch
STRAGGLES_NO_MORE = 1.25
BISECTIONS = 40


@dataclass(frozen=True)
class Member:
    """A worker. cell_s: its seconds for a microbatch; rest_s: for what else it does in a step, exchanges aside.

    cells: of its present share.
    """

    rank: int
    node_id: str
    node: str
    cell_s: float
    rest_s: float
    cells: int

    @property
    def name(self) -> str:
        return f"rank {self.rank} on {self.node}"


@dataclass(frozen=True)
class Course:
    """How a job goes. step_s, exchange_s: measured of a step, and of its exchange what nothing hides.

    change_s: what a change of members costs. steps_to_go: to the known bound. links: between nodes, by their ids.
    """

    members: tuple[Member, ...]
    microbatches: int
    step_s: float
    exchange_s: float
    change_s: float
    steps_to_go: float
    links: tuple[Link, ...] = ()


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
    """Whether to go on without some of the members: the slowest few, or the one at the narrowest link."""
    by_speed = sorted(course.members, key=lambda member: (-member.cell_s - member.rest_s, member.rank))
    choices = [by_speed[:count] for count in range(1, len(by_speed))]
    narrowest = _at_narrowest_link(course)
    if narrowest is not None and len(course.members) > 2:
        choices.append([narrowest])
    gains = [(predicted_step_s(course, _without(course, some)), len(some), some) for some in choices]
    if not gains:
        return Keep("a job needs one worker")
    predicted_s, _, some = min(gains, key=lambda found: found[:2])
    gain = Gain(course.step_s, predicted_s, course.change_s, course.steps_to_go)
    without = ", ".join(member.name for member in some)
    text = f"without {without} {gain}"
    return Drop(tuple(member.rank for member in some), gain, text) if gain.is_clear else Keep(text)


def worth_adding(course: Course, newcomer: Member, exchange_s: float | None = None) -> Keep | Add:
    """Whether one more worker makes the job clearly faster. exchange_s: with it, where that is predicted.

    A lone worker exchanges nothing, so that where nothing is predicted for it either, it can only be tried.
    """
    members = (*course.members, newcomer)
    exchanged_s = _exchange_s(course, members) if exchange_s is None else exchange_s
    predicted_s = working_s(members, course.microbatches) + exchanged_s
    gain = Gain(course.step_s, predicted_s, course.change_s, course.steps_to_go)
    text = f"with {newcomer.node} {gain}"
    return Add(newcomer.node, gain, text) if gain.is_clear else Keep(text)


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
            now_s, then_s = (working_s(some, course.microbatches) for some in (course.members, as_usual))
            found.append(Straggler(member, usual_s, now_s - then_s, course.step_s))
    return found


def predicted_step_s(course: Course, members: Sequence[Member]) -> float:
    """Seconds of a step of these members, a subset of the present ones, with the best shares."""
    return working_s(members, course.microbatches) + _exchange_s(course, members)


def working_s(members: Sequence[Member], microbatches: int) -> float:
    """Seconds until the last of the members has worked, with the best shares: the least time that holds all cells."""

    def held(seconds: float) -> int:
        return sum(int((seconds - member.rest_s) / member.cell_s) for member in members if seconds > member.rest_s)

    least = max(member.rest_s for member in members)
    most = least + microbatches * min(member.cell_s for member in members)
    for _ in range(BISECTIONS):
        middle = (least + most) / 2
        least, most = (least, middle) if held(middle) >= microbatches else (middle, most)
    return most


def _exchange_s(course: Course, members: Sequence[Member]) -> float:
    """As measured, by the traffic of a ring of so many, and by the narrowest link where all of them are known."""
    now = len(course.members)
    if len(members) == 1 or now == 1:
        return 0.0
    scaled = course.exchange_s * _ring(len(members)) / _ring(now)
    narrowest, then = _narrowest(course, course.members), _narrowest(course, members)
    return scaled * narrowest / then if narrowest and then else scaled


def _ring(workers: int) -> float:
    """Times the gradients' bytes that a worker sends."""
    return 2 * (workers - 1) / workers


def _narrowest(course: Course, members: Sequence[Member]) -> float | None:
    """Bytes a second of the narrowest link between these members' nodes; None where one is not known."""
    known = {link.ends: link.bytes_per_s for link in course.links}
    pairs = combinations(sorted({member.node_id for member in members}), 2)
    widths = [known.get((a, b)) for a, b in pairs]
    return min((width for width in widths if width), default=None) if all(widths) else None


def _at_narrowest_link(course: Course) -> Member | None:
    """The member without which the narrowest link is widest."""
    if _narrowest(course, course.members) is None:
        return None
    return max(course.members, key=lambda member: _narrowest(course, _without(course, [member])) or 0.0)


def _without(course: Course, some: Sequence[Member]) -> list[Member]:
    return [member for member in course.members if member not in some]
