"""The agent's side of its fork server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import structlog

MAX_LINE_BYTES = 1 << 20
RESPAWN_AFTER_S = 1.0
CALIBRATION = "calibration"  # its key beside the workers'
WORKERS_ENV = {
    "OMP_NUM_THREADS": "1",
    # glibc gives large blocks back to the system at once, and takes page faults for them again in every backward:
    # a fifth of a small CNN's time. Keep them.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    # What does go back, a sharded model's units, returns by pages of 2 MiB, where the system has them for the asking.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

log = structlog.get_logger("agent")


class WarmWorkers:
    """Starts and kills workers by key. `on_started(key, pid)` and `on_exited(key, status)` are called in the loop."""

    def __init__(self, on_started: Callable[[str, int], None], on_exited: Callable[[str, int], None]) -> None:
        self._on_started = on_started
        self._on_exited = on_exited
        self._process: asyncio.subprocess.Process | None = None
        self._alive: dict[str, int | None] = {}  # with the process id, once it is known
        self._queued: list[dict[str, Any]] = []  # asked for while no server ran
        self._speed: asyncio.Future[float | None] | None = None  # what a calibration finds

    async def run(self) -> None:
        """Keep a fork server alive; if it dies, its workers are lost and a new one takes its place."""
        while True:
            try:
                self._process = await self._spawned()
            except OSError as error:  # no memory, no process: there may be some soon
                log.error("fork_server_not_started", error=str(error), retry_s=RESPAWN_AFTER_S)
                await asyncio.sleep(RESPAWN_AFTER_S)
                continue
            for line in self._queued:
                self._write(line)
            self._queued.clear()
            assert self._process.stdout is not None
            async for answer in self._process.stdout:
                self._handle(json.loads(answer))
            status = await self._process.wait()
            log.error("fork_server_ended", status=status)
            self._process = None
            for key, pid in list(self._alive.items()):
                if pid is not None:
                    kill_worker(pid)
                self._exited(key, -signal.SIGKILL)
            await asyncio.sleep(RESPAWN_AFTER_S if status > 0 else 0)  # it ended by itself, and may do so again at once

    async def _spawned(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # see client/embedded.py
            "-m",
            "paceline.engine.forkserver",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
            env={**os.environ, **WORKERS_ENV},
        )

    def start(self, key: str, env: dict[str, Any]) -> None:
        self.kill(CALIBRATION)  # it would take time from the worker, and measure what the worker leaves it
        self._alive[key] = None
        self._write({"key": key, "env": env})

    def kill(self, key: str) -> None:
        if key in self._alive:
            self._write({"kill": key})

    async def calibrate(self, device: str) -> float | None:
        """FLOP/s of one core ("cpu") or of a device ("cuda:0", "mps"), by a short run in a process of its own.

        None where it ended before it knew: killed by the start of a worker, or because it can't run.
        """
        self._speed = asyncio.get_running_loop().create_future()
        self._alive[CALIBRATION] = None
        self._write({"key": CALIBRATION, "calibrate": device})
        try:
            return await self._speed
        finally:
            self.kill(CALIBRATION)

    def close(self) -> None:
        """End of stdin: the server ends its workers and itself."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def _write(self, request: dict[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            self._queued.append(request)
        else:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")

    def _handle(self, answer: dict[str, Any]) -> None:
        if "forked" in answer:
            self._alive[answer["forked"]] = answer["pid"]
            if answer["forked"] != CALIBRATION:
                self._on_started(answer["forked"], answer["pid"])
        elif "exited" in answer:
            self._exited(answer["exited"], answer["status"])
        elif "flop_per_s" in answer:
            self._calibrated(answer["flop_per_s"])

    def _exited(self, key: str, status: int) -> None:
        self._alive.pop(key, None)
        if key == CALIBRATION:
            self._calibrated(None)
        else:
            self._on_exited(key, status)

    def _calibrated(self, flop_per_s: float | None) -> None:
        if self._speed is not None and not self._speed.done():
            self._speed.set_result(flop_per_s)


def kill_worker(pid: int) -> None:
    """End a worker that has not been reaped, with its data loaders; one just forked leads no group yet."""
    for send in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(pid, signal.SIGKILL)
