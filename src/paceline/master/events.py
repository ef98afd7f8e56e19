"""What happens to a job: the machine's input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from paceline.master.states import ProbePlace
from paceline.measured import Measured
from paceline.messages.from_worker import FromWorker
from paceline.plan import Node, Placement, Plan
from paceline.planner.reconsider import Add


@dataclass(frozen=True)
class Planned:
    """The planner's decision for the next attempt, and what it knew."""

    plan: Plan
    known: Measured = field(default_factory=Measured)
    nodes: tuple[Node, ...] = ()


@dataclass(frozen=True)
class ProbeWanted:
    """Instead of Planned: measure the model first, at these places. plan: what estimates lead to."""

    plan: Plan
    places: tuple[ProbePlace, ...]


@dataclass(frozen=True)
class Unplaced:
    """The planner's refusal of the next attempt, which only the user or another node can lift."""

    error: dict[str, Any]


@dataclass(frozen=True)
class Refused:
    """The planner's refusal of a job that no node of the cluster could ever hold."""

    error: dict[str, Any]


@dataclass(frozen=True)
class Recruited:
    """A place for one more worker of a running attempt; the placement's rank is not used.

    node: it is on. cell_s: seconds that a cell is expected to take there, None where nothing tells. decision: None
    where the place of one that is lost, or was asked for, is filled.
    """

    attempt: int
    placement: Placement
    node: Node | None = None
    cell_s: float | None = None
    decision: Add | None = None


@dataclass(frozen=True)
class Answer:
    """A message of one worker of one attempt."""

    attempt: int
    rank: int
    message: FromWorker


@dataclass(frozen=True)
class Lost:
    """A worker's process ended, or its node is gone."""

    attempt: int
    rank: int
    reason: str


@dataclass(frozen=True)
class AttemptEnded:
    """No worker of the attempt is left."""

    attempt: int


@dataclass(frozen=True)
class Late:
    """The bound of a wait has passed. `waiting_for` tells whether it is still the same wait."""

    attempt: int
    waiting_for: str


@dataclass(frozen=True)
class Tick:
    """A second has passed in a running attempt."""

    attempt: int


@dataclass(frozen=True)
class ScaleRequested:
    """Train with so many workers from the next round, or the next attempt, on."""

    workers: int


@dataclass(frozen=True)
class Preempted:
    """Another job is to have the nodes: leave them at the next commit, by a checkpoint of it. reason: in numbers."""

    attempt: int
    for_job: str
    reason: str


@dataclass(frozen=True)
class NodeDraining:
    """The node is to be given back."""

    node_id: str


@dataclass(frozen=True)
class CancelRequested:
    """By the user."""


Event = (
    Planned
    | ProbeWanted
    | Unplaced
    | Refused
    | Recruited
    | Answer
    | Lost
    | AttemptEnded
    | Late
    | Tick
    | ScaleRequested
    | Preempted
    | NodeDraining
    | CancelRequested
)
