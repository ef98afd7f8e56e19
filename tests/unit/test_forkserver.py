"""The fork server: what is started can be ended, at any moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

from paceline.engine.warm import WarmWorkers
from paceline.training.channel import WorkerEnv

MANY = 40


async def start_and_kill(folder: Path) -> dict[str, int]:
    """Exit statuses of workers that were killed in the very moment of their start."""
    silent = await asyncio.start_server(lambda *_: asyncio.sleep(3600), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    statuses: dict[str, int] = {}
    warm = WarmWorkers(lambda *_: None, statuses.__setitem__)
    running = asyncio.create_task(warm.run())
    try:
        for number in range(MANY):
            env = WorkerEnv(
                master_url=f"http://127.0.0.1:{port}", job_id="job", attempt=1, rank=number, secret="s", threads=1,
                device="cpu", address="127.0.0.1", cache=str(folder), shared=[], scratch=str(folder),
                log=str(folder / "log"), ca=None,
            )  # fmt: skip
            warm.start(str(number), env.model_dump())
            warm.kill(str(number))
        async with asyncio.timeout(60):
            while len(statuses) < MANY:
                await asyncio.sleep(0.02)
    finally:
        warm.close()
        running.cancel()
    return statuses


def test_a_worker_that_is_ended_in_the_moment_of_its_start_ends(tmp_path: Path) -> None:
    assert asyncio.run(start_and_kill(tmp_path)) == {str(number): -9 for number in range(MANY)}
