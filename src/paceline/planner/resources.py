"""What workers hold of nodes, taken from what is free and given back. Pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from paceline.plan import Node, Plan

Nodes = tuple[Node, ...]


@dataclass(frozen=True)
class Hold:
    """What one worker holds. memory: bytes. device: as in its placement."""

    node_id: str
    cores: int
    memory: int
    device: str


def holds_of(plan: Plan) -> tuple[Hold, ...]:
    """What the plan's workers will hold, one entry for each."""
    cores, memory = plan.cores_per_worker, plan.memory_per_worker
    return tuple(Hold(worker.node_id, cores, memory, worker.device) for worker in plan.workers)


def cores_of(holds: Iterable[Hold]) -> int:
    return sum(hold.cores for hold in holds)


def take(nodes: Sequence[Node], holds: Iterable[Hold]) -> Nodes:
    """The nodes once workers hold this too."""
    return _changed(nodes, holds, -1)


def give(nodes: Sequence[Node], holds: Iterable[Hold]) -> Nodes:
    """The nodes once these workers have ended. One that gets no more workers stays without room."""
    return _changed(nodes, holds, 1)


def _changed(nodes: Sequence[Node], holds: Iterable[Hold], sign: int) -> Nodes:
    by_node: dict[str, list[Hold]] = defaultdict(list)
    for hold in holds:
        by_node[hold.node_id].append(hold)
    if not by_node:
        return tuple(nodes)
    return tuple(_with(node, by_node[node.id], sign) if node.id in by_node else node for node in nodes)


def _with(node: Node, holds: Sequence[Hold], sign: int) -> Node:
    if node.draining or node.quarantined is not None:
        return node
    cores = node.free_cores + sign * cores_of(holds)
    memory = node.free_memory + sign * sum(hold.memory for hold in holds)
    names = {hold.device for hold in holds}
    held = {d.index for d in node.devices if names & {f"{d.kind}:{d.index}", d.kind}}
    free = set(node.free_devices) | held if sign > 0 else set(node.free_devices) - held
    changes: dict[str, Any] = {
        "free_cores": max(0, min(node.cores, cores)),
        "free_memory": max(0, min(node.memory, memory)),
        "free_devices": tuple(sorted(free)),
    }
    return node.model_copy(update=changes)


def common(some: Sequence[Node], others: Sequence[Node]) -> Nodes:
    """The same nodes, with what is free in both."""
    return tuple(_both(one, other) for one, other in zip(some, others, strict=True))


def _both(one: Node, other: Node) -> Node:
    if one == other:
        return one
    changes = {
        "free_cores": min(one.free_cores, other.free_cores),
        "free_memory": min(one.free_memory, other.free_memory),
        "free_devices": tuple(index for index in one.free_devices if index in other.free_devices),
    }
    return one.model_copy(update=changes)
