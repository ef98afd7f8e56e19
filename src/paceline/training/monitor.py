"""What a worker is doing, for the beats that it sends: counters that only progress changes, and its stack."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paceline.messages.from_worker import Beat, Pace

STACK_FRAMES = 6


@dataclass(frozen=True)
class Reading:
    """The monitor's counters and clock at one moment."""

    at: float
    step: int
    cells: int
    busy_s: float
    waited_s: float

    def until(self, later: Reading) -> Pace:
        return Pace(
            steps=later.step - self.step,
            cells=later.cells - self.cells,
            seconds=later.at - self.at,
            busy_s=later.busy_s - self.busy_s,
            waited_s=later.waited_s - self.waited_s,
        )


class Monitor:
    """Written by the main thread, read by the beating one. bytes: carried from and to elsewhere."""

    def __init__(self) -> None:
        self.step = 0
        self.cells = 0
        self.bytes = 0
        self.phase = "idle"
        self._spent: defaultdict[str, float] = defaultdict(float)  # seconds, by phase
        self._main = threading.main_thread().ident

    @contextmanager
    def doing(self, phase: str) -> Iterator[None]:
        """Name the phase inside the block. "exchange" counts as waiting, "data" and "compute" as work on cells."""
        before, self.phase = self.phase, phase
        started = time.perf_counter()
        try:
            yield
        finally:
            self.phase = before
            self._spent[phase] += time.perf_counter() - started

    def read(self) -> Reading:
        busy_s = self._spent["data"] + self._spent["compute"]
        return Reading(time.perf_counter(), self.step, self.cells, busy_s, self._spent["exchange"])

    def carried(self, nbytes: int) -> None:
        """Count data that were fetched, or uploaded of a model: to wait for them is no hang. From any thread."""
        self.bytes += nbytes

    def beat(self) -> Beat:
        return Beat(step=self.step, cells=self.cells, carried=self.bytes, phase=self.phase, stack=self._stack())

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._main or 0)
        frames = traceback.extract_stack(frame)[-STACK_FRAMES:] if frame else []
        return " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
