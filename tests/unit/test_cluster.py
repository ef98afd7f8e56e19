"""Nodes as the planner sees them: whose the load is, what they cost, how fast they are."""

from __future__ import annotations

from typing import Any

import pytest

from paceline.master.cluster import Cluster
from paceline.measured import Calibration
from paceline.messages.from_agent import AgentHello, Load
from paceline.versions import here

from builders import GIB

SPEED = (Calibration(device="cpu", flop_per_s=5e10, at=1.0),)


def hello(name: str, identity: str = "", **changes: Any) -> AgentHello:
    fields: dict[str, Any] = {"cores": 4, "memory": 8 * GIB, "is_master": False, **changes}
    return AgentHello(
        name=name, identity=identity, address="127.0.0.1", hardware_class="cpu:AVX2", versions=here(), **fields
    )


def load(busy: float, workers: float) -> Load:
    return Load(available_memory=GIB, busy_cores=busy, worker_cores=workers)


def loads(cluster: Cluster) -> dict[str, float]:
    return {node.id: round(node.load, 6) for node in cluster.nodes()}


def test_workers_of_all_nodes_of_one_machine_are_no_load_on_any_of_them() -> None:
    cluster = Cluster()
    for node in (hello("a", "boot/1"), hello("b", "boot/2"), hello("c", "other/3")):
        cluster.join(node, print)
    cluster.report("a", load(busy=3.0, workers=1.0))
    cluster.report("b", load(busy=3.5, workers=1.5))
    cluster.report("c", load(busy=0.5, workers=0.0))
    assert loads(cluster) == {"a": 0.5, "b": 1.0, "c": 0.5}


def test_who_tells_no_machine_shares_none() -> None:
    cluster = Cluster()
    cluster.join(hello("a"), print)
    cluster.join(hello("b"), print)
    cluster.report("a", load(busy=2.0, workers=0.0))
    cluster.report("b", load(busy=2.0, workers=2.0))
    assert loads(cluster) == {"a": 2.0, "b": 0.0}


def test_others_use_the_cores_that_are_not_offered_first() -> None:
    cluster = Cluster()
    cluster.join(hello("a", machine_cores=16, cores=4), print)
    cluster.report("a", load(busy=10.0, workers=1.0))
    assert loads(cluster) == {"a": 0.0}
    cluster.report("a", load(busy=15.0, workers=1.0))
    assert loads(cluster) == {"a": 2.0}


def test_price_and_speed_are_the_nodes_and_a_later_calibration_replaces_the_first() -> None:
    cluster = Cluster()
    cluster.join(hello("a", price=0.35), print)
    cluster.join(hello("b", speed=SPEED), print)
    a, b = cluster.nodes()
    assert (a.price, a.speed, b.price, b.speed) == (0.35, (), 0.0, SPEED)
    cluster.calibrated("a", SPEED)
    assert cluster.nodes()[0].speed == SPEED


@pytest.mark.parametrize("price", [-1.0, float("nan")])
def test_a_price_that_is_none_is_not_taken(price: float) -> None:
    with pytest.raises(ValueError, match="price"):
        hello("a", price=price)
