"""When a node is measured, and what the measurement counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from paceline.engine import calibrating
from paceline.engine.calibrating import Calibrating
from paceline.messages.from_agent import Calibrated
from paceline.plan import Device
from paceline.training.calibration import Step

GPUS = (Device(kind="cuda", index=0), Device(kind="cuda", index=1))


class Scene:
    """A node on which workers come and go, and whose speed is what `answers` say, in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: dict[str, list[float | None]]) -> None:
        monkeypatch.setattr(calibrating, "IDLE_S", 0.05)
        monkeypatch.setattr(calibrating, "LOOK_EVERY_S", 0.001)
        self.answers, self.asked, self.busy = answers, [], False
        self.told: list[Calibrated] = []
        self.calibrating = Calibrating(self, lambda: self.busy)  # type: ignore[arg-type]
        self.meanwhile: Callable[[], None] = lambda: None

    asked: list[str]

    async def calibrate(self, device: str) -> float | None:
        assert not self.busy
        self.asked.append(device)
        self.meanwhile()
        return self.answers[device].pop(0)

    async def run(self, *devices: Device) -> None:
        await asyncio.wait_for(self.calibrating.run(devices, self.told.append), 60)

    @property
    def known(self) -> dict[str, float]:
        return {known.device: known.flop_per_s for known in self.calibrating.done}


def test_a_core_and_every_device_are_measured_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, {"cpu": [1.0], "cuda:0": [2.0], "cuda:1": [3.0]})
    asyncio.run(scene.run(*GPUS))
    assert scene.known == {"cpu": 1.0, "cuda:0": 2.0, "cuda:1": 3.0}
    assert scene.told[-1].speed == scene.calibrating.done
    asyncio.run(scene.run(*GPUS))  # the agent has dialled again
    assert len(scene.asked) == 3


def test_nothing_is_measured_while_a_worker_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, {"cpu": [1.0]})
    scene.busy = True

    async def act() -> None:
        running = asyncio.create_task(scene.run())
        await asyncio.sleep(0.2)
        assert scene.asked == []
        scene.busy = False
        await running

    asyncio.run(act())
    assert scene.known == {"cpu": 1.0}


def test_a_measurement_that_a_worker_ends_is_made_again_once_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, {"cpu": [None, 1.0]})

    def come_and_go() -> None:
        scene.busy = not scene.known and len(scene.asked) == 1
        asyncio.get_running_loop().call_later(0.1, setattr, scene, "busy", False)

    scene.meanwhile = come_and_go
    asyncio.run(scene.run())
    assert scene.known == {"cpu": 1.0}
    assert scene.asked == ["cpu", "cpu"]


def test_a_device_that_can_not_be_measured_stays_unknown_and_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch, {"cpu": [1.0], "cuda:0": [None], "cuda:1": [3.0]})
    asyncio.run(scene.run(*GPUS))
    assert scene.known == {"cpu": 1.0, "cuda:1": 3.0}
    assert scene.asked == ["cpu", "cuda:0", "cuda:1"]


def test_the_operations_of_a_step_are_those_that_torch_counts() -> None:
    step = Step(torch.device("cpu"))
    with FlopCounterMode(display=False) as counted:
        step()
    assert counted.get_total_flops() == step.mix.flop
