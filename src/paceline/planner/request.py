"""What is asked of the planner, and which nodes may answer it together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from paceline.plan import Node
from paceline.planner.choose import Choice, Numbers, choose
from paceline.planner.profiles import Workload, costs
from paceline.planner.rooms import Room, rooms_of


@dataclass(frozen=True)
class Request:
    """wish: workers that the user asked for since the submission. begun_on: the hardware class of a begun job."""

    work: Workload
    nodes: Sequence[Node]
    wish: int | None
    begun_on: str | None

    @cached_property
    def kind(self) -> str:
        """Of device: the asked one, or accelerators wherever the nodes that may be used have some.

        The processor all the same where it is surely quicker, worker for worker: for too small a model.
        """
        asked = self.work.options.resources
        if asked.device != "auto":
            return asked.device
        having = [node for node in self.nodes if node.devices and self._may_use(node)]
        kinds = {device.kind for node in having for device in node.devices}
        kind = next((kind for kind in ("cuda", "mps") if kind in kinds), "cpu")
        if kind == "cpu":
            return kind
        accelerated = [costs(self.work, node, kind) for node in _one_of_each_class(having)]
        plain = [costs(self.work, n, "cpu") for n in _one_of_each_class([n for n in self.nodes if self._may_use(n)])]
        surely_s = min(cost.cell_s * (1 + cost.uncertainty) for cost in plain)
        return "cpu" if surely_s < min(cost.cell_s for cost in accelerated) else kind

    def _may_use(self, node: Node) -> bool:
        names = self.work.options.resources.nodes
        return (names is None or node.name in names) and self.begun_on in (None, node.hardware_class)

    @property
    def numbers(self) -> Numbers:
        """How many workers, by the user's last word."""
        options = self.work.options
        if self.wish is not None:
            return Numbers(min(self.wish, options.microbatches), options.microbatches, fitting=True)
        return Numbers(options.resources.workers, options.microbatches)

    def rooms(self) -> list[Room]:
        return rooms_of(self.work, self.nodes, self.kind)

    def choose(self, rooms: Sequence[Room]) -> Choice:
        """From what these rooms have now."""
        usable = [room for room in rooms if not room.excluded and room.now]
        if not self.work.options.reproducible:
            return choose(self.work, [usable], self.numbers)
        by_class: dict[str, list[Room]] = {}
        for room in usable:
            if self.begun_on in (None, room.node.hardware_class):
                by_class.setdefault(room.node.hardware_class, []).append(room)
        return choose(self.work, [by_class[name] for name in sorted(by_class)], self.numbers)


def _one_of_each_class(nodes: Sequence[Node]) -> Iterable[Node]:
    """The first by id: the same one in whatever order they are listed."""
    found: dict[str, Node] = {}
    for node in nodes:
        if node.hardware_class not in found or node.id < found[node.hardware_class].id:
            found[node.hardware_class] = node
    return found.values()
