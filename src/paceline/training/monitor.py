"""What a worker is doing, for the beats that it sends: counters that only progress changes, and its stack."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paceline.messages import Beat

STACK_FRAMES = 6


class Monitor:
    """Written by the main thread, read by the beating one. bytes: of data that were fetched."""

    def __init__(self) -> None:
        self.step = 0
        self.cells = 0
        self.bytes = 0
        self.phase = "idle"
        self.waited_s = 0.0
        self._main = threading.main_thread().ident

    @contextmanager
    def doing(self, phase: str) -> Iterator[None]:
        """Name the phase inside the block. Time in "exchange" counts as waiting."""
        before, self.phase = self.phase, phase
        started = time.perf_counter()
        try:
            yield
        finally:
            self.phase = before
            if phase == "exchange":
                self.waited_s += time.perf_counter() - started

    def fetched(self, nbytes: int) -> None:
        """Count data that were fetched and unpacked: waiting for them is no hang. Called from any thread."""
        self.bytes += nbytes

    def beat(self) -> Beat:
        return Beat(step=self.step, cells=self.cells, fetched=self.bytes, phase=self.phase, stack=self._stack())

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._main or 0)
        frames = traceback.extract_stack(frame)[-STACK_FRAMES:] if frame else []
        return " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
