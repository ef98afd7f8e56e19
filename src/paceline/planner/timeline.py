"""When there will be room for a job: free nodes, and the predicted ends of what holds the others. Pure functions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

from paceline.errors import Unplaceable
from paceline.plan import Node, Plan
from paceline.planner.resources import Hold, Nodes, give, holds_of, take


@dataclass(frozen=True)
class Fit:
    """A plan, and the seconds that it is predicted to take; None where nothing tells."""

    plan: Plan
    seconds: float | None = None


class Place(Protocol):
    """The planner, as the queue sees it."""

    def __call__(self, job: str, nodes: Sequence[Node], most: int | None = None, /) -> Fit:
        """The job's plan on what is free of these nodes; `most`: workers, where it leaves their number open.

        Raises Unplaceable, with `details["busy"]` where it would fit on idle nodes.
        """


@dataclass(frozen=True)
class End:
    """A job's end, in seconds from now (infinite: unknown), and what it gives back."""

    at: float
    job: str
    holds: tuple[Hold, ...]


@dataclass(frozen=True)
class Timeline:
    """nodes: with what is free at `now`. ends: those that are to come, in their order."""

    nodes: Nodes
    ends: tuple[End, ...]
    now: float = 0.0

    @classmethod
    def of(cls, nodes: Sequence[Node], ends: Iterable[End], now: float = 0.0) -> Timeline:
        return cls(tuple(nodes), tuple(sorted(ends, key=lambda end: (end.at, end.job))), now)

    def after(self, count: int) -> Nodes:
        """The nodes once so many of the ends have come."""
        return give(self.nodes, (hold for end in self.ends[:count] for hold in end.holds))

    def joined(self, end: End) -> Timeline:
        """The same, with one more job on its places until its end; as it is, where that has come when it begins.

        From now itself on it holds them whatever is foretold: its end is known when it has come.
        """
        if 0.0 < self.now >= end.at:
            return self
        return Timeline.of(take(self.nodes, end.holds), (*self.ends, end), self.now)

    def leaving(self, jobs: Iterable[str]) -> Timeline:
        """The same, where these jobs end now."""
        asked = set(jobs)
        ends = [replace(end, at=self.now) if end.job in asked else end for end in self.ends]
        return Timeline.of(self.nodes, ends, self.now)


@dataclass(frozen=True)
class Reservation:
    """The first moment with room for a job, by the predictions. nodes: what is free then. awaited: ends before it."""

    job: str
    at: float
    fit: Fit
    nodes: Nodes
    awaited: tuple[End, ...]

    @property
    def spare(self) -> Nodes:
        """What is free then, and the job does not need."""
        return take(self.nodes, holds_of(self.fit.plan))


def fits(place: Place, job: str, nodes: Sequence[Node]) -> bool:
    try:
        place(job, nodes)
    except Unplaceable:
        return False
    return True


def reserve(job: str, timeline: Timeline, place: Place) -> Reservation | None:
    """The job's reservation; None where it does not even fit once everything has ended."""
    ends = timeline.ends
    counts = range(len(ends) + 1)
    count = bisect_left(counts, True, key=lambda some: fits(place, job, timeline.after(some)))
    if count == len(counts):
        return None
    nodes = timeline.after(count)
    at = max(timeline.now, ends[count - 1].at) if count else timeline.now
    return Reservation(job, at, place(job, nodes), nodes, ends[:count])


def following(timeline: Timeline, reservation: Reservation) -> Timeline:
    """From the moment on at which a reserved job starts."""
    later, seconds = timeline.ends[len(reservation.awaited) :], reservation.fit.seconds
    end = End(inf if seconds is None else reservation.at + seconds, reservation.job, holds_of(reservation.fit.plan))
    return Timeline(reservation.nodes, later, reservation.at).joined(end)
