"""The controller: one event of a job after the other, whoever they come from."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from paceline.master.artifacts import Blobs
from paceline.master.cluster import Cluster
from paceline.master.controller import Controller
from paceline.master.feed import Feed
from paceline.master.states import CancelRequested
from paceline.master.store import Store
from paceline.messages import AgentHello, Message, StartWorker, StopWorkers
from paceline.spec import Versions

from builders import GIB, submission


class Slow(Store):
    """Holds the first write that tells of a plan back, until it is let go."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.planning, self.go_on = threading.Event(), threading.Event()

    def save(self, job: Any, plan: Any, records: Sequence[Any], now: float) -> Any:
        if any(getattr(record, "kind", "") == "planned" for record in records):
            self.planning.set()
            assert self.go_on.wait(30)
        return super().save(job, plan, records, now)


@pytest.fixture
def store(tmp_path: Path) -> Slow:
    return Slow(f"sqlite:///{tmp_path / 'paceline.db'}")


async def cancel_while_the_plan_is_written(store: Slow, folder: Path, heard: list[Message]) -> str:
    cluster = Cluster()
    cluster.join(
        AgentHello(
            name="n", is_master=False, address="127.0.0.1", hardware_class="cpu:AVX2", cores=4, memory=8 * GIB,
            versions=Versions(paceline="1", python="3.11", torch="2.13.0"),
        ),
        heard.append,
    )  # fmt: skip
    controller = Controller(store, cluster, Feed(), Blobs(folder), folder)
    running = asyncio.create_task(controller.run())
    row = await controller.submit(submission())
    await asyncio.to_thread(store.planning.wait, 30)
    controller.post(row.id, CancelRequested())
    await asyncio.sleep(0.2)  # time enough for a controller that does not wait for its turn
    store.go_on.set()
    deadline = time.monotonic() + 30
    while not any(isinstance(message, StopWorkers) for message in heard) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    running.cancel()
    return store.job(row.id).state


def test_a_job_cancelled_while_its_plan_is_written_leaves_no_worker(store: Slow, tmp_path: Path) -> None:
    heard: list[Message] = []
    state = asyncio.run(cancel_while_the_plan_is_written(store, tmp_path, heard))
    assert [type(message) for message in heard] == [StartWorker, StopWorkers]
    assert state == "CANCELLED"
