"""A plan: which nodes train a job and why. Plain data, made by the planner, read by everyone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from paceline.explain import document, explained
from paceline.measured import Calibration, in_steps, kind_of_device


class Device(BaseModel):
    """One accelerator of a node. memory: bytes, 0 where unknown."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["cuda", "mps"]
    index: int = 0
    name: str = ""
    memory: int = 0


class Node(BaseModel):
    """One machine as its agent describes it. free_* is what no job of this master holds.

    load: of the cores, so many cores' worth of time goes to others than this master's workers, lately.
    quarantined: why no job may use it: it was found to compute wrongly. speed: where it is measured, of one core
    ("cpu") and of each device ("cuda:0", "mps"). price: of an hour, in the currency of `max_cost=`; 0 where it costs
    nothing. tmpfs: bytes of its file system in memory, which count as memory too. kept: of it, what the job that is
    planned left there in its last attempt; it counts as free.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    address: str
    is_master: bool = False
    hardware_class: str
    cores: int
    memory: int
    tmpfs: int = 0
    kept: int = 0
    devices: tuple[Device, ...] = ()
    free_cores: int
    free_memory: int
    free_devices: tuple[int, ...] = ()
    load: float = 0.0
    draining: bool = False
    quarantined: str | None = None
    speed: tuple[Calibration, ...] = ()
    price: float = 0.0

    def speed_of(self, kind: str) -> float | None:
        """FLOP/s of a core ("cpu"), or of the slowest device of another kind; None where it is not calibrated."""
        return min((one.flop_per_s for one in self.speed if one.kind == kind and one.flop_per_s > 0), default=None)

    @cached_property
    def traits(self) -> str:
        """What jobs look at but for names, links and memory: nodes with equal ones are alike otherwise.

        Speeds, and how crowded its cores are once it is full, in steps of 5%. Text, since its hash is kept: thousands
        of nodes are compared in every plan.
        """
        kinds = sorted({"cpu", *(device.kind for device in self.devices)})
        speeds = tuple((kind, in_steps(speed)) for kind in kinds if (speed := self.speed_of(kind)) is not None)
        crowded = max(1.0, (self.load + self.free_cores) / max(1, self.cores))
        devices = sorted((device.kind, device.index in self.free_devices) for device in self.devices)
        rare = (self.price, self.is_master, self.draining, self.quarantined)
        return repr((self.hardware_class, self.cores, self.free_cores, in_steps(crowded), speeds, devices, rare))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As of every model; what was worked out of this node's fields is not taken along."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("traits", None)
        return copied


class Placement(BaseModel):
    """One worker of a plan. share: [first, end) of the grid's cells. device: "cpu", "cuda:0", "mps"."""

    model_config = ConfigDict(frozen=True)

    rank: int
    node_id: str
    node_name: str
    device: str
    share: tuple[int, int]

    @property
    def kind(self) -> str:
        """Of its device: "cpu", "cuda", "mps"."""
        return kind_of_device(self.device)


class Prediction(BaseModel):
    """What given workers with given shares would take, as far as it can be told beforehand.

    step_s: compute_s (forward and backward, of the slowest worker) + exchange_s - hidden_s (what of the exchange goes
    on under the last microbatch's backward) + update_s. memory_bytes: of one worker, with the process itself.
    traffic_bytes_per_step: sent by all workers to each other, those on one node too. start_s: until the first step.
    epoch_s, finish_s: with evaluations; finish_s from the start to the stop condition's bound, where a metric counts as
    never reached; None where the number of samples is not known. by_time: wall time is what ends it. cost: of that time
    on all the nodes, None like finish_s. uncertainty: of step_s, relative: 0.1 is "10% more or less". extrapolated:
    outside of what was measured, or nothing was; doubts: why.
    """

    model_config = ConfigDict(frozen=True)

    step_s: float
    compute_s: float
    exchange_s: float
    hidden_s: float
    update_s: float
    memory_bytes: int
    traffic_bytes_per_step: int
    start_s: float
    epoch_s: float | None
    finish_s: float | None
    by_time: bool
    cost: float | None
    uncertainty: float
    extrapolated: bool
    doubts: tuple[str, ...] = ()

    @property
    def time_s(self) -> float:
        """What choices are compared by, before step_s: the time to the bound; the same for all that wall time ends."""
        if self.finish_s is None:
            return 0.0
        return round(self.finish_s - self.start_s, 9) if self.by_time else self.finish_s


class NodeReason(BaseModel):
    """Why these nodes, by name, were taken or not, in numbers; they are alike for the job."""

    model_config = ConfigDict(frozen=True)

    nodes: tuple[str, ...]
    taken: bool
    reason: str

    @model_validator(mode="before")
    @classmethod
    def _of_one_node(cls, value: Any) -> Any:
        """As earlier versions stored it."""
        if isinstance(value, dict) and "node" in value:
            return {**value, "nodes": (value["node"],)}
        return value


class NodePart(BaseModel):
    """What a chosen node has to do. step_s: of its own microbatches. traffic_bytes_per_step: that its workers send."""

    model_config = ConfigDict(frozen=True)

    step_s: float
    finish_s: float | None
    memory_bytes: int
    traffic_bytes_per_step: int


class ChosenNode(BaseModel):
    """A node of the plan. share: its workers' cells [first, end). cores, memory: free there, for its workers."""

    model_config = ConfigDict(frozen=True)

    name: str
    workers: int
    share: tuple[int, int]
    cores: int
    memory: int
    price: float
    predicted: NodePart


class Alternative(BaseModel):
    """What else was compared. workers_on: how many on each node, in rank order."""

    model_config = ConfigDict(frozen=True)

    mode: str
    workers_on: dict[str, int]
    predicted: Prediction
    reason: str


class Waiting(BaseModel):
    """The plan is for later: a place in the queue. expected_start_s: from now; None where it can't be told."""

    model_config = ConfigDict(frozen=True)

    place: int
    expected_start_s: float | None = None


class Sharding(BaseModel):
    """How far a sharded job's memory is saved. microbatches: of its grid; more of them are smaller ones.

    recompute: activations are computed again in backward, unit by unit. offload: where the device is an accelerator,
    parameters' shards, gradients and optimizer state wait in the host's memory. copy_bytes: of each worker, that copies
    of its shard take in nodes' memory; 0 where none are made. heap_bytes: of each worker, that its heap may lose to
    holes, so that memory need not be fetched from the system anew for each use; 0 where it goes back at once.
    """

    model_config = ConfigDict(frozen=True)

    microbatches: int
    recompute: bool = False
    offload: bool = False
    copy_bytes: int = 0
    heap_bytes: int = 0


class Plan(BaseModel):
    """The master's decision for a job. most_workers: as many as it would use, if more places were free.

    sharding: where the mode is "sharded". waiting: None where it can start now.
    faster: what would make it faster, in numbers.
    """

    model_config = ConfigDict(frozen=True)

    mode: Literal["exact", "sharded", "script"] = "exact"
    sharding: Sharding | None = None
    workers: tuple[Placement, ...]
    hardware_class: str
    cores_per_worker: int
    memory_per_worker: int
    microbatches: int
    most_workers: int
    summary: str
    reasons: tuple[NodeReason, ...]
    predicted: Prediction | None = None
    nodes: tuple[ChosenNode, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    faster: tuple[str, ...] = ()
    waiting: Waiting | None = None

    @property
    def elastic(self) -> bool:
        """Whether workers may come and go in an attempt: each holds the whole model, where sharded ones are its parts.

        Not a script's: its ranks are told once who they are.
        """
        return self.mode == "exact"

    def explain(self) -> str:
        """The decision as text: what is predicted, the chosen nodes, what else was compared, a line for each node."""
        return explained(self)

    def document(self) -> dict[str, Any]:
        """The decision as `paceline plan --json` prints it: decision, chosen, alternatives, rejected."""
        return document(self)
