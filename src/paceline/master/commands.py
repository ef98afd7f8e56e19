"""What is to be done for a job: the machine's output, which the controller performs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from paceline.master.events import Late, Tick
from paceline.measured import Profile
from paceline.messages.to_worker import ToWorker
from paceline.plan import Placement


@dataclass(frozen=True)
class Enqueue:
    """Plan this job, or find it more workers, as soon as nodes are free."""


@dataclass(frozen=True)
class StartWorkers:
    attempt: int
    placements: tuple[Placement, ...]


@dataclass(frozen=True)
class Send:
    attempt: int
    rank: int
    message: ToWorker


@dataclass(frozen=True)
class StopWorkers:
    """All of the attempt's, or those of the given ranks."""

    attempt: int
    ranks: tuple[int, ...] | None = None


@dataclass(frozen=True)
class SetTimer:
    seconds: float
    event: Late | Tick


@dataclass(frozen=True)
class Commit:
    """Steps [from_step, to_step) are part of the job now: the ledger's entry."""

    attempt: int
    from_step: int
    to_step: int
    samples: int


@dataclass(frozen=True)
class RollBack:
    """Commits from `step` on are undone: the next attempt starts there."""

    step: int


@dataclass(frozen=True)
class Discard:
    """This job no longer needs these checkpoints' blobs. damaged: nobody does."""

    blobs: tuple[str, ...]
    damaged: bool = False


@dataclass(frozen=True)
class Forget:
    """Nothing of the job is to stay on the nodes, once its workers there have ended."""


@dataclass(frozen=True)
class Learn:
    """What a kind of job costs, for the plans of this job and of later ones."""

    kind: str
    profile: Profile


@dataclass(frozen=True)
class Quarantine:
    """The node computes wrongly: no job is to use it."""

    node_id: str
    reason: str


@dataclass(frozen=True)
class Record:
    """A row of the job's history, for whoever watches."""

    kind: str
    data: dict[str, Any] = field(default_factory=dict)


Command = (
    Enqueue
    | StartWorkers
    | Send
    | StopWorkers
    | SetTimer
    | Commit
    | RollBack
    | Discard
    | Forget
    | Learn
    | Quarantine
    | Record
)
