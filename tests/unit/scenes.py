"""A controller at work on a real store, with agents and workers that are told what to do and do it in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from paceline.master.artifacts import Blobs
from paceline.master.cluster import Cluster, WorkerKey
from paceline.master.controller import Controller
from paceline.master.feed import Feed
from paceline.master.job import Job
from paceline.master.logs import Logs
from paceline.master.states import Starting
from paceline.master.store import ADMIN, Store
from paceline.messages.from_agent import AgentHello
from paceline.messages.from_worker import CheckpointWritten, FromWorker, Pace, Ready, Trained, WorkerHello
from paceline.messages.message import CheckpointRef, Message
from paceline.messages.to_agent import StartWorker, StopWorkers
from paceline.messages.to_worker import Setup, TrainRound
from paceline.planner.queue import Policy
from paceline.settings import LOG_BYTES
from paceline.spec import Resources
from paceline.versions import here

from builders import GIB, submission

BOUND_S = 120.0
ROUND_S = 0.02


class HeldStore(Store):
    """Where `held`, the first save of a job that starts waits until it is let go."""

    def __init__(self, url: str, held: bool) -> None:
        super().__init__(url)
        self.saving, self.go_on = threading.Event(), threading.Event()
        if not held:
            self.go_on.set()

    def save(self, job: Job, *arguments: Any) -> Any:
        if isinstance(job.state, Starting) and not self.saving.is_set():
            self.saving.set()
            assert self.go_on.wait(BOUND_S)
        return super().save(job, *arguments)


class Scene:
    """A controller, and what it sends to each node's agent. Jobs have one worker each; a node has four places."""

    def __init__(self, folder: Path, policy: Policy | None = None, held: bool = False) -> None:
        self.store, self.cluster = HeldStore(f"sqlite:///{folder / 'paceline.db'}", held), Cluster()
        self.controller = Controller(
            self.store, self.cluster, Feed(), Blobs(folder), Logs(folder, LOG_BYTES), policy or Policy()
        )
        self._serving: asyncio.Task[None] | None = None

    def join(self, name: str, hardware_class: str = "cpu:AVX2", identity: str = "", cores: int = 4) -> list[Message]:
        """A node whose agent only notes what it is told."""
        sent: list[Message] = []
        self.controller.node_joined(_hello(name, hardware_class, identity, cores), sent.append)
        return sent

    def staff(self, name: str, cores: int = 1) -> list[Message]:
        """A node whose agent starts and ends workers, which train a step in no time."""
        sent: list[Message] = []

        def obey(message: Message) -> None:
            sent.append(message)
            asyncio.get_running_loop().call_soon(self._obey, message)

        self.controller.node_joined(_hello(name, "cpu:AVX2", "", cores), obey)
        return sent

    def _obey(self, message: Message) -> None:
        if isinstance(message, StartWorker):
            key = (message.job_id, message.attempt, message.rank)
            self.cluster.workers[key].send = lambda order: self._work(key, order)
            self.controller.worker_says(key, WorkerHello(address="127.0.0.1"))
        if isinstance(message, StopWorkers):
            for key in [key for key in self.cluster.workers if key[:2] == (message.job_id, message.attempt)]:
                self.controller.worker_ended(key, "stopped")

    def _work(self, key: WorkerKey, order: Message) -> None:
        for answer in _answers(order):
            asyncio.get_running_loop().call_later(ROUND_S, self._say, key, answer)

    def _say(self, key: WorkerKey, answer: FromWorker) -> None:
        if key in self.cluster.workers:
            self.controller.worker_says(key, answer)

    async def submit(self, name: str, user: str = ADMIN, **changes: Any) -> str:
        """A job of one worker; its id."""
        sent = submission(name, val=False, **{"resources": Resources(workers=1), "batch_size": 4, **changes})
        return str((await self.controller.submit(sent, user)).id)

    def serve(self) -> None:
        """Put the controller to work."""
        self._serving = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        await self.controller.resume()
        await self.controller.run()

    async def open(self, *names: str) -> tuple[list[Message], list[str]]:
        """A node, these jobs, and the controller at work, held as it starts the first: (what the agent got, ids)."""
        sent = self.join("n0")
        jobs = [await self.submit(name) for name in names]
        self.serve()
        await until(lambda: self.store.saving.is_set() if not self.store.go_on.is_set() else started(sent) == jobs)
        return sent, jobs

    def play(self, act: Callable[[], Awaitable[None]]) -> None:
        """Act within the bound; the controller must still serve at the end."""

        async def playing() -> None:
            try:
                await asyncio.wait_for(act(), BOUND_S)
                assert self._serving is not None
                assert not self._serving.done()
            finally:
                self.store.go_on.set()

        asyncio.run(playing())  # it cancels what still runs
        self.store.close()


def _hello(name: str, hardware_class: str, identity: str, cores: int) -> AgentHello:
    return AgentHello(
        name=name, identity=identity, is_master=False, address="127.0.0.1", hardware_class=hardware_class, cores=cores,
        memory=8 * GIB, versions=here(),
    )  # fmt: skip


def _answers(order: Message) -> list[FromWorker]:
    match order:
        case Setup():
            return [Ready(fingerprint="f", train_samples=18, parameters=1, store_port=1)]
        case TrainRound():
            steps = order.to_step - order.from_step
            fields = {"from_step": order.from_step, "step": order.to_step, "losses": (1.0,) * steps}
            pace = Pace(steps=steps, cells=steps, seconds=ROUND_S, busy_s=ROUND_S, waited_s=0.0)
            trained = Trained(**fields, seconds=ROUND_S, pace=pace)
            ref = CheckpointRef(step=order.from_step, blob="f" * 64, nbytes=1)
            return [trained, CheckpointWritten(checkpoint=ref)] if order.checkpoint else [trained]
    raise AssertionError(f"nobody asks for {order!r} here")


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


def started(sent: list[Message]) -> list[str]:
    return [message.job_id for message in sent if isinstance(message, StartWorker)]
