"""How fast a device trains: forward and backward of a small perceptron and a small convolution, a fixed mix.

Run in a process of its own, which ends with it. It takes about a second.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch.nn.functional import conv2d, linear

from paceline.training.seeds import make_deterministic

WARM_UP_S = 0.1
# Two of the periods in which a CPU quota is given out. After the warm-up a window begins and ends within the quota's
# running part, and so holds whole periods.
WINDOW_S = 0.2
WINDOWS = 3
CROWDED_CORES = 0.5  # fewer were idle: this process may have waited for one
BOUND_S = 60  # then the process ends, lest a driver that hangs keep other agents from their turn


@dataclass(frozen=True)
class Mix:
    """Two linear layers of `width` on `batch` rows, two 3x3 convolutions of `channels` on `images` of a `side`."""

    batch: int
    width: int
    images: int
    channels: int
    side: int

    @property
    def flop(self) -> int:
        """Of one forward and backward: all weights get gradients, and so does the input of the second layers."""
        dense = 2 * self.batch * self.width**2
        convolution = 2 * self.images * self.side**2 * self.channels**2 * 9
        return 5 * (dense + convolution)


CORE = Mix(batch=32, width=512, images=4, channels=32, side=16)
ACCELERATOR = Mix(batch=4096, width=2048, images=64, channels=128, side=56)  # keeps a large one busy


class Step:
    """One forward and backward, waited for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.mix = mix = CORE if device.type == "cpu" else ACCELERATOR
        torch.manual_seed(0)
        self._rows = torch.randn(mix.batch, mix.width, device=device)
        self._images = torch.randn(mix.images, mix.channels, mix.side, mix.side, device=device)
        shapes = [(mix.width, mix.width)] * 2 + [(mix.channels, mix.channels, 3, 3)] * 2
        self._weights = [(torch.randn(shape, device=device) * 0.01).requires_grad_() for shape in shapes]

    def __call__(self) -> None:
        first, second, third, fourth = self._weights
        dense = linear(linear(self._rows, first).relu(), second)
        convolved = conv2d(conv2d(self._images, third, padding=1).relu(), fourth, padding=1)
        torch.autograd.grad(dense.square().mean() + convolved.square().mean(), self._weights)
        if self._device.type != "cpu":
            torch.accelerator.synchronize()


def measure(kind: str, quota: float) -> float:
    """FLOP/s of one core ("cpu"), or of the accelerator of this kind that this process sees; the best of a few.

    quota: the cores' worth of time that this process is known to get at most. By the clock; but where other processes
    kept the cores busy, by the processor time that it had: their load comes and goes, and is told by itself.
    """
    make_deterministic(threads=1, reproducible=True)
    step = Step(torch.device(kind))
    with _turn():
        _window(step, WARM_UP_S)
        began, idle = time.perf_counter(), psutil.cpu_times().idle
        windows = [_window(step, WINDOW_S) for _ in range(WINDOWS)]
        idle_cores = (psutil.cpu_times().idle - idle) / (time.perf_counter() - began)
    if kind == "cpu" and idle_cores < CROWDED_CORES:
        return max(by_processor for _, by_processor in windows) * min(1.0, quota)
    return max(by_clock for by_clock, _ in windows)


def _window(step: Step, seconds: float) -> tuple[float, float]:
    """FLOP per second of the clock, and of this process's processor time."""
    began, used = time.perf_counter(), time.process_time()
    steps = 0
    while (spent := time.perf_counter() - began) < seconds or not steps:
        step()
        steps += 1
    flop = steps * step.mix.flop
    return flop / spent, flop / max(time.process_time() - used, 1e-9)


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """This user's agents on one machine measure one after the other: at once, each would find it half as fast."""
    path = Path(tempfile.gettempdir()) / f"paceline-calibration-{os.getuid()}"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        signal.alarm(BOUND_S)
        yield
        signal.alarm(0)
    finally:
        os.close(lock)
