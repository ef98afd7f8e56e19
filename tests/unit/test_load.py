"""Load: what the machine is busy with, and how much of it are the node's own workers."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from paceline.engine import load
from paceline.engine.load import SAMPLES, LoadMeter

GONE = 2**22 + 1  # beyond the largest process id


class Counters:
    """What a system would have counted, in seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at, self.machine, self.worker = 100.0, 5000.0, 7.0
        monkeypatch.setattr(load.time, "monotonic", lambda: self.at)
        monkeypatch.setattr(load.psutil, "cpu_times", lambda: SimpleNamespace(user=self.machine, system=0.0, idle=9e9))
        times = SimpleNamespace(cpu_times=lambda: SimpleNamespace(user=self.worker, system=0.0))
        real = load.psutil.Process
        monkeypatch.setattr(load.psutil, "Process", lambda pid: times if pid == os.getpid() else real(pid))

    def pass_by(self, seconds: float, machine: float, worker: float) -> None:
        self.at, self.machine, self.worker = self.at + seconds, self.machine + machine, self.worker + worker


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Counters:
    return Counters(monkeypatch)


def test_load_is_the_time_that_was_spent_since(counters: Counters) -> None:
    meter = LoadMeter()
    first = meter.read([os.getpid()], available_memory=11)
    assert (first.busy_cores, first.worker_cores, first.available_memory) == (0.0, 0.0, 11)
    counters.pass_by(2.0, machine=3.0, worker=1.0)
    told = meter.read([os.getpid()], available_memory=11)
    assert (told.busy_cores, told.worker_cores) == (1.5, 0.5)


def test_a_worker_that_has_ended_was_a_worker_all_the_same(counters: Counters) -> None:
    meter = LoadMeter()
    meter.read([os.getpid()], 0)
    counters.pass_by(2.0, machine=2.0, worker=2.0)
    meter.read([os.getpid(), GONE], 0)
    counters.pass_by(2.0, machine=0.0, worker=0.0)
    told = meter.read([], 0)
    assert (told.busy_cores, told.worker_cores) == (0.5, 0.5)


def test_what_is_long_over_is_no_load(counters: Counters) -> None:
    meter = LoadMeter()
    meter.read([], 0)
    counters.pass_by(2.0, machine=4.0, worker=0.0)
    for _ in range(SAMPLES):
        told = meter.read([], 0)
        counters.pass_by(2.0, machine=0.0, worker=0.0)
    assert told.busy_cores == 0.0
