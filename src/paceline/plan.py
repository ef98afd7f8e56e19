"""A plan: which nodes train a job and why. Plain data, made by the planner, read by everyone."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from paceline.measured import Calibration


class Device(BaseModel):
    """One accelerator of a node. memory: bytes, 0 where unknown."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["cuda", "mps"]
    index: int = 0
    name: str = ""
    memory: int = 0


class Node(BaseModel):
    """One machine as its agent describes it. free_* is what no job of this master holds.

    quarantined: why no job may use it: it was found to compute wrongly. speed: where it is measured, of each device.
    price: of an hour, in the currency of `max_cost=`; 0 where it costs nothing.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    address: str
    is_master: bool = False
    hardware_class: str
    cores: int
    memory: int
    devices: tuple[Device, ...] = ()
    free_cores: int
    free_memory: int
    free_devices: tuple[int, ...] = ()
    load: float = 0.0
    draining: bool = False
    quarantined: str | None = None
    speed: tuple[Calibration, ...] = ()
    price: float = 0.0


class Placement(BaseModel):
    """One worker of a plan. share: [first, end) of the grid's cells. device: "cpu", "cuda:0", "mps"."""

    model_config = ConfigDict(frozen=True)

    rank: int
    node_id: str
    node_name: str
    device: str
    share: tuple[int, int]


class NodeReason(BaseModel):
    """Why a node was taken or not, in numbers."""

    model_config = ConfigDict(frozen=True)

    node: str
    taken: bool
    reason: str


class Sharding(BaseModel):
    """How far a sharded job's memory is saved. microbatches: of its grid; more of them are smaller ones.

    recompute: activations are computed again in backward, unit by unit. offload: where the device is an accelerator,
    parameters' shards, gradients and optimizer state wait in the host's memory.
    """

    model_config = ConfigDict(frozen=True)

    microbatches: int
    recompute: bool = False
    offload: bool = False


class Plan(BaseModel):
    """The master's decision for a job. most_workers: as many as it would use, if more places were free.

    sharding: where the mode is "sharded".
    """

    model_config = ConfigDict(frozen=True)

    mode: Literal["exact", "sharded"] = "exact"
    sharding: Sharding | None = None
    workers: tuple[Placement, ...]
    hardware_class: str
    cores_per_worker: int
    memory_per_worker: int
    microbatches: int
    most_workers: int
    summary: str
    reasons: tuple[NodeReason, ...]

    def explain(self) -> str:
        """The decision as text: the workers with their shares, then one line for every node."""
        lines = [f"{self.mode}: {self.summary}", ""]
        lines += [f"  {'rank':<6}{'node':<20}{'device':<10}microbatches of {self.microbatches}"]
        for worker in self.workers:
            first, end = worker.share
            lines.append(f"  {worker.rank:<6}{worker.node_name:<20}{worker.device:<10}{first}..{end - 1}")
        lines += ["", "nodes"]
        lines += [f"  {'+' if r.taken else '-'} {r.node:<20}{r.reason}" for r in self.reasons]
        return "\n".join(lines)
