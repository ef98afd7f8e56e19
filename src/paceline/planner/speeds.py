"""How fast nodes are that have not measured it yet: a node is calibrated once it has been idle for some seconds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from paceline.measured import Calibration
from paceline.plan import Node


def with_speeds(nodes: Sequence[Node]) -> Sequence[Node]:
    """Nodes without a calibration count as the median of their hardware class; where no other is known, as they are.

    Otherwise a node that nobody has measured would seem as fast as a usual one, beside others known to be slow.
    """
    if all(node.speed for node in nodes):
        return nodes
    known: dict[str, dict[str, list[float]]] = {}
    for node in nodes:
        for one in (one for one in node.speed if one.flop_per_s > 0):
            known.setdefault(node.hardware_class, {}).setdefault(one.kind, []).append(one.flop_per_s)
    if all(node.speed or node.hardware_class not in known for node in nodes):
        return nodes
    usual = {
        name: tuple(Calibration(device=kind, flop_per_s=median(speeds), at=0.0) for kind, speeds in kinds.items())
        for name, kinds in known.items()
    }
    return [
        node if node.speed else node.model_copy(update={"speed": usual.get(node.hardware_class, ())}) for node in nodes
    ]
