"""What the nodes offer a job: places for its workers, and the reason where a node offers none.

Nodes that are alike for the job make one room, so that a plan's cost grows with their kinds, not with their number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from paceline.explain import size
from paceline.plan import Node
from paceline.planner.predict import Slot, worker_bytes
from paceline.planner.profiles import Workload, costs
from paceline.spec import TrainOptions

MASTER_BYTES = 512 * 2**20
MASTER_CORES_FROM = 4  # on a smaller node the master shares the cores


@dataclass(frozen=True)
class Room:
    """What each of these nodes, by name, offers.

    now, idle: workers that fit on it now, and when no job runs. lone: one worker fits, but no more than one in all,
    since an exchange needs memory too. excluded: why the job may not use it, whatever room it has. linked: those of the
    nodes with a measured link.
    """

    nodes: tuple[Node, ...]
    kind: str
    memory: int
    now: int
    idle: int
    lone: bool = False
    excluded: str = ""
    linked: tuple[Node, ...] = ()

    @property
    def node(self) -> Node:
        """Any of them: they are alike."""
        return self.nodes[0]

    def slots(self, node: Node) -> list[Slot]:
        """The node's places; of the devices, free ones first."""
        if self.kind == "cpu":
            return [Slot(node, "cpu")] * self.now
        fitting = sorted(d.index for d in node.devices if d.kind == self.kind)
        fitting.sort(key=lambda index: index not in node.free_devices)
        return [Slot(node, f"cuda:{at}" if self.kind == "cuda" else self.kind) for at in fitting[: self.now]]

    def when_idle(self) -> Room:
        """The same when no job runs."""
        return replace(self, now=self.idle)

    @property
    def limit(self) -> str:
        """What each of the nodes has, in numbers."""
        node = self.node
        free, most = (_span([getattr(n, name) for n in self.nodes]) for name in ("free_memory", "memory"))
        text = f"{node.free_cores} of {node.cores} cores free, {free} of {most} memory free"
        if self.kind == "cpu":
            return text
        fitting = {d.index for d in node.devices if d.kind == self.kind}
        return f"{text}, {len(fitting & set(node.free_devices))} of {len(fitting)} {self.kind} devices free"


def _span(amounts: Sequence[int]) -> str:
    least, most = size(max(0, min(amounts))), size(max(0, max(amounts)))
    return least if least == most else f"{least} to {most}"


def rooms_of(work: Workload, nodes: Sequence[Node], kind: str) -> list[Room]:
    """All nodes, grouped; rooms in the order of their first node's id."""
    names = work.options.resources.nodes
    together = [] if work.options.reproducible else list({node.hardware_class: node for node in nodes}.values())
    needs: dict[str, tuple[int, int]] = {}
    alike: dict[tuple[str, bool], list[Node]] = defaultdict(list)
    for node in sorted(nodes, key=attrgetter("id")):  # little is asked of each node: there may be thousands, each time
        alike[node.traits, names is None or node.name in names].append(node)
    rooms = []
    for same in alike.values():
        hardware_class = same[0].hardware_class
        if hardware_class not in needs:
            needs[hardware_class] = _needs(work, kind, together or same[:1])
        parts = _by_places(same, work.options.threads, *needs[hardware_class])
        rooms += [_room(tuple(part), work, kind, *needs[hardware_class]) for part in parts]
    return sorted(rooms, key=lambda room: room.node.id)


def _by_places(same: Sequence[Node], threads: int, gang: int, alone: int) -> Iterable[Sequence[Node]]:
    """Nodes that differ in their memory alone, by how many workers that holds: what is beyond their cores' is alike."""
    node, kept = same[0], kept_back(same[0])

    def places(memory: int, cores: int) -> int:
        return min((memory - kept) // gang, cores // threads) or -(memory - kept >= alone)  # -1: a lone worker only

    whole, free = [node.memory for node in same], [node.free_memory for node in same]
    ends = (([min(whole), max(whole)], node.cores), ([min(free), max(free)], node.free_cores))
    if all(len({places(memory, cores) for memory in span}) == 1 for span, cores in ends):
        return [same]
    parts: dict[tuple[int, int], list[Node]] = defaultdict(list)
    for node, most, now in zip(same, whole, free, strict=True):
        parts[places(most, node.cores), places(now, node.free_cores)].append(node)
    return parts.values()


def _needs(work: Workload, kind: str, classes: Sequence[Node]) -> tuple[int, int]:
    """Bytes of a worker that is one of several, and of a lone one: the most of hardware classes that train together.

    classes: a node of each of them.
    """
    options = work.options
    if options.resources.memory:
        return options.resources.memory, options.resources.memory
    each = [costs(work, node, kind) for node in classes]
    alone = max(worker_bytes(work, cost, 1) for cost in each)
    if options.microbatches == 1 or options.resources.workers == 1:
        return alone, alone
    return max(worker_bytes(work, cost, 2) for cost in each), alone


def _room(nodes: tuple[Node, ...], work: Workload, kind: str, gang: int, alone: int) -> Room:
    out = excluded(nodes[0], work.options)
    if out:
        return Room(nodes, kind, gang, 0, 0, excluded=out)
    idle = fitting(nodes, work.options, kind, gang, now=False)
    if idle or alone == gang:
        return Room(
            nodes, kind, gang, fitting(nodes, work.options, kind, gang, now=True), idle, linked=_linked(nodes, work)
        )
    now, idle = (min(1, fitting(nodes, work.options, kind, alone, now=at)) for at in (True, False))
    return Room(nodes, kind, alone if idle else gang, now, idle, lone=idle > 0)


def _linked(nodes: tuple[Node, ...], work: Workload) -> tuple[Node, ...]:
    by_ends = work.network.by_ends
    return tuple([node for node in nodes if node.id in by_ends]) if by_ends else ()


def excluded(node: Node, options: TrainOptions) -> str:
    """Why the job may not use the node, whatever room it has; "" where it may."""
    allowed = options.resources.nodes
    if allowed is not None and node.name not in allowed:
        return f"not among the nodes asked for ({', '.join(allowed)})"
    if node.quarantined is not None:
        return f"in quarantine: {node.quarantined}; start its agent anew to lift it"
    return "is being given back" if node.draining else ""


def kept_back(node: Node) -> int:
    """Bytes of the node's memory that the master needs itself."""
    return MASTER_BYTES if node.is_master else 0


def fitting(nodes: Sequence[Node], options: TrainOptions, kind: str, need: int, now: bool) -> int:
    """Workers of so many bytes that fit on each of the nodes, now or when no job runs."""
    node = nodes[0]
    reserved = 1 if node.is_master and node.cores >= MASTER_CORES_FROM else 0
    memory: int = min(map(attrgetter("free_memory" if now else "memory"), nodes)) - kept_back(node)
    cores = (node.free_cores if now else node.cores) - reserved
    most = min(cores // options.threads, memory // need)
    if kind != "cpu":
        most = min(most, sum(d.kind == kind and (not now or d.index in node.free_devices) for d in node.devices))
    return max(0, most)


def when_idle(nodes: Sequence[Node]) -> list[Node]:
    """The same cluster when no job runs."""
    return [
        node.model_copy(
            update={
                "free_cores": node.cores,
                "free_memory": node.memory,
                "free_devices": tuple(device.index for device in node.devices),
            }
        )
        for node in nodes
    ]
