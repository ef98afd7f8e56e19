"""How busy this machine is, and how much of that is the node's own workers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

import psutil

from paceline.messages.from_agent import Load

SAMPLES = 6  # of one every two seconds: what is told is the mean of the last ten


class LoadMeter:
    """Differences of what the system has counted. Data loaders count as others': no cores are held for them."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float, float]] = deque(maxlen=SAMPLES)
        self._of_worker: dict[int, float] = {}
        self._of_ended = 0.0

    def read(self, pids: Iterable[int], available_memory: int) -> Load:
        """pids: of the workers that live. The first one tells no load: it takes two to tell how fast time is spent."""
        self._samples.append((time.monotonic(), _machine_s(), self._workers_s(set(pids))))
        (began, machine, workers), (at, machine_now, workers_now) = self._samples[0], self._samples[-1]
        passed = max(at - began, 1e-3)
        return Load(
            available_memory=available_memory,
            busy_cores=max(0.0, machine_now - machine) / passed,
            worker_cores=max(0.0, workers_now - workers) / passed,
        )

    def _workers_s(self, pids: set[int]) -> float:
        for pid in self._of_worker.keys() - pids:
            self._of_ended += self._of_worker.pop(pid)
        for pid in pids:
            try:
                times = psutil.Process(pid).cpu_times()
            except psutil.Error:  # it has ended since
                continue
            self._of_worker[pid] = times.user + times.system
        return self._of_ended + sum(self._of_worker.values())


def _machine_s() -> float:
    """Seconds of processor time that this machine has spent on any process."""
    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
