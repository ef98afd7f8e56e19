"""When a node's speed is measured: once for each of its devices, and never beside a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from paceline.engine.warm import WarmWorkers
from paceline.measured import Calibration
from paceline.messages.from_agent import Calibrated
from paceline.plan import Device

IDLE_S = 3.0  # since it joined, or since its last worker: the first job of an embedded master comes sooner
LOOK_EVERY_S = 0.5
BOUND_S = 300.0  # a slow machine imports torch first

log = structlog.get_logger("agent")


class Calibrating:
    """done: what is known so far; it outlives the connection to the master. is_busy: whether a worker runs here."""

    def __init__(self, warm: WarmWorkers, is_busy: Callable[[], bool]) -> None:
        self._warm, self._is_busy = warm, is_busy
        self._failed: set[str] = set()
        self.done: tuple[Calibration, ...] = ()

    async def run(self, devices: Sequence[Device], tell: Callable[[Calibrated], None]) -> None:
        """Measure a core and the devices, as far as they are not known. What fails once stays unknown."""
        names = ["cpu", *(f"cuda:{d.index}" if d.kind == "cuda" else d.kind for d in devices)]
        while left := [name for name in names if name not in self._failed | {known.device for known in self.done}]:
            await self._idle()
            device = left[0]
            flop_per_s = await self._measured(device)
            if flop_per_s is not None:
                self.done += (Calibration(device=device, flop_per_s=flop_per_s, at=time.time()),)
                tell(Calibrated(speed=self.done))
            elif not self._is_busy():  # or else a worker came, and it is tried again
                log.warning("calibration_failed", device=device)
                self._failed.add(device)

    async def _measured(self, device: str) -> float | None:
        try:
            async with asyncio.timeout(BOUND_S):
                return await self._warm.calibrate(device)
        except TimeoutError:
            return None

    async def _idle(self) -> None:
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < IDLE_S:
            await asyncio.sleep(LOOK_EVERY_S)
            if self._is_busy():
                quiet_since = time.monotonic()
