"""What is asked of the planner, and which nodes may answer it together."""

from __future__ import annotations

from collections.abc import Sequence
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
        names = None if asked.nodes is None else frozenset(asked.nodes)
        having = [
            node
            for node in self.nodes
            if node.devices and (names is None or node.name in names) and self.begun_on in (None, node.hardware_class)
        ]
        kinds = {device.kind for node in having for device in node.devices}
        kind = next((kind for kind in ("cuda", "mps") if kind in kinds), "cpu")
        if kind == "cpu":
            return kind
        accelerated = min(costs(self.work, node, kind).cell_s for node in having)
        usable = (node for node in self.nodes if names is None or node.name in names)
        plain = [costs(self.work, node, "cpu") for node in usable if self.begun_on in (None, node.hardware_class)]
        return "cpu" if min(cost.cell_s * (1 + cost.uncertainty) for cost in plain) < accelerated else kind

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
