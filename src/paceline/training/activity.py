"""Whether a script makes progress, as far as that is seen from outside: it prints, reports, or uses the processor."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import psutil

WINDOW_S = 5.0
IDLE_CORES = 0.01  # threads that only wait wake up now and then: of torch, of a progress bar, of TensorBoard's writer


class Activity:
    """Asked again and again. now: seconds by any clock. printed: bytes so far. processor_s: as the function below."""

    def __init__(self, now: float, printed: int, processor_s: Callable[[], float]) -> None:
        self._since, self._printed = now, printed
        self._processor_s = processor_s
        self._spent = processor_s()

    def moved(self, now: float, printed: int) -> bool:
        """Whether it has printed since the last call, or used more than a trifle of the processor in a window."""
        said, self._printed = printed != self._printed, printed
        if now - self._since < WINDOW_S:
            return said
        spent = self._processor_s()
        worked = spent - self._spent > IDLE_CORES * (now - self._since)
        self._since, self._spent = now, spent
        return said or worked


def processor_s(pid: int) -> float:
    """Seconds of processor time of a process, all below it, and all of these that have ended and were waited for."""
    total = 0.0
    with suppress(psutil.Error):  # it has ended since
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                total += sum(one.cpu_times()[:4])  # user, system, and both of waited-for children
    return total
