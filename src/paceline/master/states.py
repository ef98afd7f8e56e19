"""What a job is made of: its committed training, its states, the events that change it and the commands that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from paceline.grid import Grid
from paceline.master.shown import Shown
from paceline.measured import Measured, Profile
from paceline.messages import (
    CheckpointRef,
    CheckRound,
    EvaluateRound,
    FromWorker,
    Group,
    ModelFile,
    Returned,
    SaveRound,
    Suspected,
    ToWorker,
    TrainRound,
)
from paceline.plan import Node, Placement, Plan
from paceline.planner.reconsider import Add
from paceline.spec import Submission
from paceline.stop import StopCondition

MAX_FAILED_JOINS = 3


class Training(BaseModel):
    """What is committed: it names the model's state exactly, and goes back to a checkpoint's as a whole."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    train_samples: int | None = None
    step: int = 0
    loss_sum: float = 0.0
    loss_samples: int = 0
    evaluated_step: int = 0
    history: tuple[dict[str, float], ...] = ()
    best: float | None = None
    best_step: int | None = None
    unmarked_best: bool = False


class Checkpoint(BaseModel):
    """A published checkpoint and what was committed at its step."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    ref: CheckpointRef
    training: Training


@dataclass(frozen=True)
class Copies:
    """All shards of one commit, copied into nodes' memory, and what was committed at its step. nodes: bytes, by id."""

    step: int
    training: Training
    nodes: Mapping[str, int]


class Delivery(BaseModel):
    """The trained model, as the client will get it: one blob, or `files` with the blob as their index."""

    model_config = ConfigDict(frozen=True)

    blob: str
    files: tuple[ModelFile, ...] = ()
    nbytes: int
    digest: str
    step: int
    stop_reason: str
    reproducible: bool
    irreproducible_because: str | None = None
    hardware_class: str


class KeptFolder(BaseModel):
    """An output folder, as a tar file."""

    model_config = ConfigDict(frozen=True)

    blob: str
    nbytes: int


class Output(BaseModel):
    """What a script left, as the client will get it. blob, nbytes: of rank 0's output folder; "" for none.

    folders: of each rank; those of one node are the same. returned: by each rank, where it was a function.
    """

    model_config = ConfigDict(frozen=True)

    blob: str
    nbytes: int
    folder: str
    folders: tuple[KeptFolder | None, ...] = ()
    returned: tuple[Returned | None, ...]
    stop_reason: str


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


# ---- states ----


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
    copying: of the commit whose shards are being copied, copied: by whom already. copied_at, copy_s: when the last
    copies were ordered, and for how long training stood still for them. copies_failed: no more in this attempt.
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
    order: TrainRound | CheckRound | EvaluateRound | SaveRound | None = None
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


class Live(Protocol):
    """What a job of any kind is known by."""

    @property
    def state(self) -> object: ...

    @property
    def state_name(self) -> str: ...

    @property
    def attempt(self) -> int: ...


@dataclass(frozen=True)
class Job:
    """attempt: of the present or last gang start, 0 before the first. furthest: the last step ever committed.

    fruitless: attempts in a row, with the present one, that have committed no step beyond `furthest`. checkpoints: that
    the next attempt may start from, newest first. copies: of a sharded job, where they are newer.
    wish: how many workers the user asked for since it was submitted. hardware_class: of the first attempt; it is part
    of the result, so that later ones keep it. probed: how its probe came out, None before it; probes are the workers
    of attempt 0. known, nodes: what the present attempt was planned by; nodes by their ids, with those that came since.
    """

    id: str
    submission: Submission
    state: State = field(default_factory=Queued)
    attempt: int = 0
    fruitless: int = 0
    furthest: int = 0
    elapsed_s: float = 0.0
    training: Training = field(default_factory=Training)
    checkpoints: tuple[Checkpoint, ...] = ()
    copies: Copies | None = None
    wish: int | None = None
    hardware_class: str | None = None
    probed: str | None = None
    known: Measured = field(default_factory=Measured)
    nodes: Mapping[str, Node] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The newest."""
        return self.checkpoints[0] if self.checkpoints else None

    @property
    def restored(self) -> Training:
        """What the next attempt goes on from: the newer one of checkpoint and copies."""
        if self.copies is not None:
            return self.copies.training
        return self.checkpoint.training if self.checkpoint else Training()

    @property
    def state_name(self) -> str:
        return type(self.state).__name__.upper()

    @property
    def wanted(self) -> int:
        """How many more workers a running job could use."""
        state = self.state
        if not isinstance(state, Running) or state.stopping or state.preempted:
            return 0
        if state.failed_joins >= MAX_FAILED_JOINS:
            return 0
        if state.plan.mode == "sharded":
            return 0
        return max(0, state.target - state.staying)


# ---- events ----


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


# ---- commands ----


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
Outcome = tuple[Job, list[Command]]
