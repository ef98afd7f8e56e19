"""Nodes that have not measured their speed yet."""

from __future__ import annotations

from paceline.measured import Calibration
from paceline.plan import Node
from paceline.planner.planner import plan_workers
from paceline.planner.speeds import with_speeds
from paceline.spec import Resources

from builders import node, options, submission


def of_speed(name: str, flop_per_s: float, **changes: object) -> Node:
    return node(name, speed=(Calibration(device="cpu", flop_per_s=flop_per_s, at=1.0),), **changes)


def test_a_node_that_is_not_calibrated_counts_as_its_class_does_in_the_median() -> None:
    nodes = [of_speed("a", 1e10), of_speed("b", 2e10), of_speed("c", 9e10), node("d"), node("e", hardware_class="arm")]
    assert [n.speed_of("cpu") for n in with_speeds(nodes)] == [1e10, 2e10, 9e10, 2e10, None]


def test_where_nothing_is_known_of_a_class_its_nodes_stay_as_they_are() -> None:
    nodes = [node("a"), of_speed("b", 1e10, hardware_class="arm")]
    assert with_speeds(nodes) is nodes


def test_a_node_that_nobody_has_measured_is_not_preferred_to_slow_ones_that_were() -> None:
    measured = [of_speed(name, 1e9) for name in ("a", "b")]
    asked = options(resources=Resources(workers=1))
    (worker,) = plan_workers([node("z"), *measured], asked, submission().facts).workers
    assert worker.node_name == "a"
