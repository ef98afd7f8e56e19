"""Which links the master has measured, when, and what it knows of those that can't be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from paceline.master import links as module
from paceline.master.cluster import Cluster, WorkerLink
from paceline.master.links import UNREACHABLE_BYTES_PER_S, Links
from paceline.messages.from_agent import AgentHello, LinkProbed, ProbeFailed, ProbeListening
from paceline.messages.message import Message
from paceline.messages.to_agent import ListenForProbe, ProbeLink
from paceline.plan import Placement
from paceline.versions import here

from builders import GIB

ADDRESSES = {"own": "127.0.0.1", "a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3", "z": "10.0.0.9"}
PORTS = {"own": 500.0, "a": 1000.0, "b": 1000.0, "c": 50.0, "z": 50.0}


class Scene:
    """Agents that answer as if the slower of two ports were what limits a pair. heard: who was told what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cluster, self.heard, self.silent, self.now = Cluster(), [], set(), 1000.0
        self.links = Links(self.cluster)
        self.unreachable: set[str] = set()
        monkeypatch.setattr(module.time, "time", lambda: self.now)

    heard: list[tuple[str, Message]]
    silent: set[str]

    def join(self, *names: str) -> None:
        for name in names:
            hello = AgentHello(
                name=name, is_master=name == "own", address=ADDRESSES[name], hardware_class="cpu:AVX2", cores=4,
                memory=8 * GIB, versions=here(),
            )  # fmt: skip
            self.cluster.join(hello, self._agent(name))

    def _agent(self, name: str) -> Callable[[Message], None]:
        def hear(message: Message) -> None:
            self.heard.append((name, message))
            if name not in self.silent:
                self.links.answered(self._answer(name, message))

        return hear

    def _answer(self, name: str, message: Message) -> Any:
        if isinstance(message, ListenForProbe):
            return ProbeListening(probe=message.probe, port=4000)
        assert isinstance(message, ProbeLink)
        [other] = [known for known, address in ADDRESSES.items() if address == message.host]
        if {name, other} & self.unreachable:
            return ProbeFailed(probe=message.probe, reason=f"{message.host}:4000: no answer within 2 s")
        rate = min(PORTS[name], PORTS[other])
        return LinkProbed(probe=message.probe, latency_s=0.001, bytes_per_s=rate)

    def ensure(self, *names: str) -> dict[tuple[str, str], float]:
        """The known links afterwards, between these nodes."""
        asyncio.run(self.links.ensure(names))
        return {link.ends: link.bytes_per_s for link in self.links.known(names)}

    @property
    def bursts(self) -> int:
        return sum(isinstance(message, ProbeLink) for _, message in self.heard)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    made = Scene(monkeypatch)
    made.join("own", "a", "b", "c")
    return made


def test_links_between_the_nodes_asked_for_are_known_and_nobody_else_is_disturbed(scene: Scene) -> None:
    assert scene.ensure("a", "b", "c") == {("a", "b"): 1000.0, ("a", "c"): 50.0, ("b", "c"): 50.0}
    assert "own" not in {name for name, _ in scene.heard}


def test_what_is_known_is_not_measured_again_until_it_is_old(scene: Scene) -> None:
    scene.ensure("a", "b", "c")
    before = scene.bursts
    scene.ensure("c", "a", "b")
    assert scene.bursts == before
    scene.now += module.OLD_AFTER_S
    scene.ensure("a", "b", "c")
    assert scene.bursts == 2 * before
    assert {link.at for link in scene.links.measured()} == {scene.now}


def test_a_training_node_is_measured_once_and_not_again(scene: Scene) -> None:
    place = Placement(rank=0, node_id="a", node_name="a", device="cpu", share=(0, 1))
    scene.cluster.workers["job", 1, 0] = WorkerLink(place, threads=1, memory=GIB)
    scene.ensure("a", "b")
    assert scene.bursts == 1
    scene.now += module.OLD_AFTER_S
    scene.ensure("a", "b")
    assert scene.bursts == 1
    del scene.cluster.workers["job", 1, 0]
    scene.ensure("a", "b")
    assert scene.bursts == 2


def test_nodes_that_do_not_reach_each_other_are_told_with_the_reason_and_asked_again_soon(scene: Scene) -> None:
    scene.unreachable.add("c")
    told = scene.ensure("a", "c")
    assert told == {("a", "c"): UNREACHABLE_BYTES_PER_S}
    [link] = scene.links.measured()
    assert link.failure is not None
    assert "could not reach" in link.failure
    assert "no answer within 2 s" in link.failure
    scene.unreachable.clear()
    scene.now += module.FAILED_OLD_AFTER_S
    assert scene.ensure("a", "c") == {("a", "c"): 50.0}


def test_an_agent_that_never_answers_costs_a_bounded_wait(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_WITHIN_S", 0.05)
    scene.silent.add("b")
    assert scene.ensure("a", "b") == {("a", "b"): UNREACHABLE_BYTES_PER_S}
    assert "no answer from an agent" in str(scene.links.measured()[0].failure)


def test_the_masters_own_node_dials_where_only_its_own_machine_reaches_it(scene: Scene) -> None:
    scene.join("z")
    scene.ensure("own", "z")
    scene.ensure("own", "a")
    assert [name for name, message in scene.heard if isinstance(message, ProbeLink)] == ["own", "own"]


def test_a_node_that_leaves_takes_its_links_with_it_though_another_comes_by_its_name(scene: Scene) -> None:
    scene.ensure("a", "b")
    scene.cluster.leave("b")
    scene.join("b")
    assert scene.links.known() == ()
    assert scene.ensure("a", "b") == {("a", "b"): 1000.0}


def test_after_its_time_nothing_more_is_begun(scene: Scene) -> None:
    asyncio.run(scene.links.ensure(["a", "b"], within_s=0.0))
    assert scene.heard == []


def test_a_late_answer_changes_nothing(scene: Scene) -> None:
    scene.links.answered(LinkProbed(probe="long ago", latency_s=1.0, bytes_per_s=1.0))
    assert scene.links.measured() == ()
