"""Workers of a fork server end when they are told to, and with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import psutil

from paceline.engine.warm import WarmWorkers
from paceline.training.channel import WorkerEnv

from helpers import ended

BOUND_S = 120.0


class Scene:
    """Warm workers that dial a master which never answers, and what became of them."""

    def __init__(self, folder: Path) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.folder = folder
        self.pids: dict[str, int] = {}
        self.statuses: dict[str, int] = {}
        self.warm = WarmWorkers(self.pids.__setitem__, self.statuses.__setitem__)

    def start(self, key: str) -> None:
        env = WorkerEnv(
            master_url=f"http://127.0.0.1:{self.listening.getsockname()[1]}", job_id="job", attempt=1, rank=0, secret="",
            threads=1, device="cpu", address="127.0.0.1", cache=str(self.folder), shared=[], scratch=str(self.folder), job=str(self.folder),
            copies=str(self.folder), log=str(self.folder / key),
        )  # fmt: skip
        self.warm.start(key, env.model_dump())

    def play(self, act: Callable[[], object]) -> None:
        async def playing() -> None:
            running = asyncio.create_task(self.warm.run())
            try:
                await asyncio.wait_for(act(), BOUND_S)  # type: ignore[arg-type]
            finally:
                running.cancel()
                self.warm.close()
                await until(lambda: not servers())

        with self.listening:
            asyncio.run(playing())


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


def servers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end while it is looked at
            if child.status() != psutil.STATUS_ZOMBIE and "forkserver" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_a_worker_that_is_killed_right_after_its_start_ends(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    async def act() -> None:
        scene.start("one")
        scene.warm.kill("one")  # both wait for the server, which reads them at once
        await until(lambda: "one" in scene.statuses)
        assert scene.statuses["one"] == -signal.SIGKILL

    scene.play(act)


def test_workers_end_with_their_server_and_one_asked_for_meanwhile_starts_in_the_next(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    async def act() -> None:
        scene.start("one")
        await until(lambda: "one" in scene.pids)
        pid = scene.pids["one"]
        server = psutil.Process(pid).ppid()
        os.kill(server, signal.SIGKILL)
        await until(lambda: "one" in scene.statuses)
        scene.start("two")
        await until(lambda: ended(pid))
        await until(lambda: "two" in scene.pids)
        assert psutil.Process(scene.pids["two"]).ppid() != server
        assert "two" not in scene.statuses

    scene.play(act)


def test_a_calibration_tells_a_speed_and_leaves_no_process(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    async def act() -> None:
        speed = await scene.warm.calibrate("cpu")
        assert speed is not None
        assert 1e8 < speed < 1e13
        assert await scene.warm.calibrate("cuda:99") is None  # such a device is on no machine: it says so, and goes on
        assert scene.pids == scene.statuses == {}
        (server,) = servers()
        await until(lambda: server.children(recursive=True) == [])

    scene.play(act)


def test_the_start_of_a_worker_ends_a_calibration(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    async def act() -> None:
        measuring = asyncio.create_task(scene.warm.calibrate("cpu"))
        await asyncio.sleep(0)
        scene.start("one")
        assert await measuring is None
        await until(lambda: "one" in scene.pids)
        assert "one" not in scene.statuses

    scene.play(act)
