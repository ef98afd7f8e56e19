"""The states of a job's life, and what each of them holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paceline.grid import Grid
from paceline.master.committed import Training
from paceline.master.delivery import Delivery, Output
from paceline.master.shown import Shown
from paceline.messages.from_worker import FromWorker, Suspected
from paceline.messages.to_worker import Group, Round
from paceline.plan import Placement, Plan
from paceline.stop import StopCondition


@dataclass(frozen=True)
class Queued:
    """Not started yet."""


@dataclass(frozen=True)
class ProbePlace:
    """Where a model is to be measured. memory: bytes that it may take there. flop_per_s: the place's, if calibrated."""

    placement: Placement
    hardware_class: str
    memory: int
    flop_per_s: float | None = None


@dataclass(frozen=True)
class Planning:
    """The model is being measured. plan: by estimates. held: places of it that are kept free meanwhile.

    pending: probes that have not answered, by rank. notes: how the others came out.
    """

    plan: Plan
    held: tuple[Placement, ...]
    pending: Mapping[int, ProbePlace]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Worker:
    """A worker that has built everything. step: its model's state is that after so many steps.

    cell_s, rest_s: seconds that it takes for one cell; of a step for all else but exchanges, such as the optimizer;
    both smoothed. moved_at: when it last made progress; beat_at: when it was last heard; phase, stack: what it was
    doing then.
    """

    placement: Placement
    address: str
    store_port: int
    step: int
    cell_s: float | None = None
    rest_s: float | None = None
    counter: tuple[int, int, int] = (0, 0, 0)
    moved_at: float = 0.0
    beat_at: float = 0.0
    phase: str = ""
    stack: str = ""


@dataclass(frozen=True)
class Starting:
    """building: started workers that are not ready, with their address once they have said hello.

    draining: nodes that are to be given back; their workers leave once others can go on.
    """

    plan: Plan
    building: Mapping[int, tuple[Placement, str]]
    workers: Mapping[int, Worker] = field(default_factory=dict)
    fingerprints: Mapping[int, str] = field(default_factory=dict)
    draining: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Running:
    """members: ranks that train, in the group's order; workers also has those that are ready to join. parameters:
    how many are trained.

    order: what the members (or the first, for a save) were asked; answers: theirs so far. lost: why members were lost
    since the order. leaving: members to be released once they can be spared. target: how many workers the job wants.
    failed_joins: workers in a row that were to join and never became ready. torn: rounds in a row in which the members
    lost each other, though none of them was gone, and trained no step. suspected: what says that the next step can't be
    right. trusted_step: one that was computed twice, to the same bits. step_s, evaluation_s: of the last
    round's steps, of the longest evaluation. preempted: why the job is to leave its nodes at the next commit.
    checkpointed_at, checkpoint_s: when the last checkpoint was ordered, and how long the last whole one took.
    copying: of the commit whose shards are being copied, copied: by whom already. copied_at, copy_s: when the last
    copies were ordered, and how long they took. copies_failed: no more in this attempt. looked_at: when hangs were last
    looked for.
    """

    plan: Plan
    grid: Grid
    parameters: int
    fingerprint: str
    members: tuple[int, ...]
    workers: Mapping[int, Worker]
    group: Group
    since: float
    checkpointed_at: float
    target: int
    next_rank: int
    building: Mapping[int, tuple[Placement, str]] = field(default_factory=dict)
    generation: int = 0
    order: Round | None = None
    ordered_at: float = 0.0
    answers: Mapping[int, FromWorker] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    leaving: frozenset[int] = frozenset()
    stopping: tuple[StopCondition, ...] = ()
    reproducible: bool = True
    step_s: float | None = None
    evaluation_s: float | None = None
    rounds: int = 0
    pending: Training | None = None
    checkpoint_s: float = 0.0
    failed_joins: int = 0
    torn: int = 0
    suspected: Suspected | None = None
    trusted_step: int | None = None
    preempted: str | None = None
    copying: Training | None = None
    copied: frozenset[int] = frozenset()
    copied_at: float = 0.0
    copy_s: float = 0.0
    copies_failed: bool = False
    shown: Shown = field(default_factory=Shown)
    looked_at: float = 0.0

    @property
    def staying(self) -> int:
        """Workers that train, are ready to or are being built, and have not been asked to leave."""
        return len(set(self.workers) - self.leaving) + len(self.building)


@dataclass(frozen=True)
class Recovering:
    """The attempt is over, lost or preempted; its last workers are being ended."""

    reason: str


@dataclass(frozen=True)
class Waiting:
    """For nodes to take the next attempt."""

    reason: str


@dataclass(frozen=True)
class Succeeded:
    delivery: Delivery | Output


@dataclass(frozen=True)
class Failed:
    """output: what a script had written by then, where it could be fetched."""

    error: dict[str, Any]
    output: Output | None = None


@dataclass(frozen=True)
class Cancelled:
    """At the user's word. output: as of `Failed`."""

    output: Output | None = None


State = Queued | Planning | Starting | Running | Recovering | Waiting | Succeeded | Failed | Cancelled
TERMINAL = (Succeeded, Failed, Cancelled)
