"""The agent: one process a node. Starts, watches and ends workers at the master's word; never runs user code.

It dials the master and keeps one WebSocket to it. When that breaks, its workers' attempts are over: it ends them and
dials again.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from paceline.engine import copies, facts, folders, linkprobe
from paceline.engine.calibrating import Calibrating
from paceline.engine.identity import Identity
from paceline.engine.load import LoadMeter
from paceline.engine.protocol import AgentArgs
from paceline.engine.warm import WarmWorkers
from paceline.engine.workerlog import WorkerLog
from paceline.errors import PacelineError, Unauthorized, from_json
from paceline.log import configure_log
from paceline.messages.from_agent import (
    AgentHello,
    LinkProbed,
    LogLines,
    ProbeFailed,
    ProbeListening,
    WorkerExited,
    WorkerStarted,
)
from paceline.messages.message import MAX_MESSAGE_BYTES, Message
from paceline.messages.to_agent import (
    ForgetJob,
    ListenForProbe,
    ProbeLink,
    Refused,
    StartWorker,
    StopWorkers,
    ToAgent,
    Welcome,
    to_agent,
)
from paceline.tls import trusting
from paceline.training.channel import WorkerEnv
from paceline.versions import here

LOAD_EVERY_S = 2.0
LOG_EVERY_S = 0.3
TIDY_EVERY_S, CACHED_S = 3600.0, 86_400.0
REDIAL_AFTER_S = 1.0
MOST_QUEUED = 200  # messages; beyond, what workers print waits in their files

log = structlog.get_logger("agent")


class RunningWorker:
    """One worker process of this node."""

    def __init__(self, order: StartWorker, folder: Path) -> None:
        self.order = order
        self.folder = folder
        self.log = WorkerLog(folder / "log")
        self.pid: int | None = None


class Agent:
    def __init__(self, args: AgentArgs) -> None:
        self._url, self._token, self._ca, self._blobs = args.master_url, args.token, args.ca, args.blobs
        self._name = args.name or socket.gethostname()
        self._folder = args.folder / "nodes" / f"{self._name}-{uuid.uuid4().hex[:8]}"
        self._copies = copies.Folder()
        self._identity = ""  # it has one once it runs
        self._cores, self._price = args.cores or facts.cores(), args.price
        self._address = facts.address_towards(args.master_url)
        self._workers: dict[str, RunningWorker] = {}
        self._over: set[str] = set()  # ended jobs whose last workers here are not seen to end yet
        self._warm = WarmWorkers(self._started, self._exited)
        self._calibrating = Calibrating(self._warm, lambda: bool(self._workers))
        self._load = LoadMeter()
        self._outgoing: asyncio.Queue[Message] = asyncio.Queue()
        self._beside: set[asyncio.Task[None]] = set()  # what serves one connection, beside its reading

    async def run(self) -> None:
        """Serve until cancelled. Raises the master's refusal, which dialling again would not change."""
        folders.sweep(self._folder.parent)
        lock = folders.claim(self._folder)
        beside = [asyncio.create_task(work) for work in (self._warm.run(), self._tidy())]
        try:
            with Identity(self._folder.parent, self._name) as identity:
                self._identity = identity.text
                await self._serve()
        finally:
            self._warm.close()
            for work in beside:
                work.cancel()
            self._copies.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            lock.close()

    async def _tidy(self) -> None:
        """Let go of blobs that no worker has asked for in a day: a job that needs one again fetches it."""
        while True:
            await asyncio.sleep(TIDY_EVERY_S)
            folders.evict(self._folder / "cache", time.time() - CACHED_S)

    async def _serve(self) -> None:
        while True:
            with contextlib.suppress(OSError, ConnectionClosed, TimeoutError):
                await self._serve_once()
            self._end_workers(lambda _: True)
            self._copies.clear()  # to the master, this node is lost, and what it kept
            self._outgoing = asyncio.Queue()
            await asyncio.sleep(REDIAL_AFTER_S)
            log.info("redialling", master=self._url)

    async def _serve_once(self) -> None:
        url = f"{self._url.replace('http', 'ws', 1)}/api/v1/channels/agent"
        tls: dict[str, Any] = {"ssl": trusting(self._ca)} if url.startswith("wss") else {}
        headers = {"Authorization": f"Bearer {self._token}"}
        try:
            channel = await connect(
                url, additional_headers=headers, max_size=MAX_MESSAGE_BYTES, compression=None, proxy=None, **tls
            )
        except InvalidStatus as refused:
            if refused.response.status_code in (401, 403):
                raise Unauthorized(
                    f"the master at {self._url} does not accept this token.", "Use the join line that it printed."
                ) from refused
            raise ConnectionError from refused
        async with channel:
            await channel.send(self._hello().model_dump_json())
            for work in (self._send(channel), self._report_load(channel), self._send_logs()):
                self._do(work)
            self._do(self._calibrating.run(facts.devices(), self._outgoing.put_nowait))
            try:
                async for text in channel:
                    self._handle(to_agent.validate_json(text))
            finally:
                for task in self._beside:
                    task.cancel()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        """Beside the reading, until the connection ends."""
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._beside.discard(task)
        if not task.cancelled() and not isinstance(task.exception(), ConnectionClosed | None):
            log.error("agent_task_failed", exc_info=task.exception())

    def _hello(self) -> AgentHello:
        return AgentHello(
            name=self._name,
            identity=self._identity,
            is_master=self._blobs is not None,
            address=self._address,
            hardware_class=facts.hardware_class(),
            cores=self._cores,
            machine_cores=psutil.cpu_count() or 0,
            memory=facts.memory(),
            tmpfs=self._copies.room,
            devices=facts.devices(),
            price=self._price,
            speed=self._calibrating.done,
            versions=here(),
        )

    def _handle(self, order: ToAgent) -> None:
        match order:
            case Welcome():
                log.info("joined", master=self._url, node=order.node_id)
            case Refused():
                raise from_json(order.error)
            case StartWorker():
                self._start(order)
            case StopWorkers():
                self._end_workers(lambda o: (o.job_id, o.attempt) == (order.job_id, order.attempt), order.ranks)
            case ForgetJob():
                self._over.add(order.job_id)
                self._forget(order.job_id)
            case ListenForProbe():
                self._do(self._listen(order))
            case ProbeLink():
                self._do(self._probe(order))

    async def _listen(self, order: ListenForProbe) -> None:
        try:
            with linkprobe.Listener(self._address, order.secret) as listener:
                self._outgoing.put_nowait(ProbeListening(probe=order.probe, port=listener.port))
                await listener.serve()
        except OSError as error:
            self._outgoing.put_nowait(ProbeFailed(probe=order.probe, reason=f"it can't listen: {error}"))

    async def _probe(self, order: ProbeLink) -> None:
        try:
            latency_s, bytes_per_s = await linkprobe.probe(order.host, order.port, order.secret)
        except OSError as error:
            self._outgoing.put_nowait(ProbeFailed(probe=order.probe, reason=str(error)))
        else:
            self._outgoing.put_nowait(LinkProbed(probe=order.probe, latency_s=latency_s, bytes_per_s=bytes_per_s))

    def _job_folder(self, job_id: str) -> Path:
        return self._folder / "jobs" / job_id

    def _forget(self, job_id: str) -> None:
        """Remove what an ended job's workers shared, once the last of them is gone."""
        if job_id in self._over and not any(worker.order.job_id == job_id for worker in self._workers.values()):
            self._over.discard(job_id)
            shutil.rmtree(self._job_folder(job_id), ignore_errors=True)
            shutil.rmtree(self._copies.of_job(job_id), ignore_errors=True)

    def _start(self, order: StartWorker) -> None:
        key = f"{order.job_id}.{order.attempt}.{order.rank}"
        folder = self._folder / "workers" / key
        self._workers[key] = RunningWorker(order, folder)
        try:
            folder.mkdir(parents=True)
        except OSError as error:  # a full disk costs this worker, not those that run
            log.error("worker_not_started", worker=key, error=str(error))
            return self._exited(key, 1)
        env = WorkerEnv(
            master_url=self._url,
            job_id=order.job_id,
            attempt=order.attempt,
            rank=order.rank,
            secret=order.secret,
            threads=order.threads,
            device=order.device,
            address=self._address,
            cache=str(self._folder / "cache"),
            shared=[str(self._blobs)] if self._blobs else [],
            scratch=str(folder),
            job=str(self._job_folder(order.job_id)),
            copies=str(self._copies.of_job(order.job_id)),
            log=str(self._workers[key].log.path),
            ca=str(self._ca) if self._ca else None,
        )
        self._warm.start(key, env.model_dump())

    def _end_workers(self, which: Callable[[StartWorker], bool], ranks: tuple[int, ...] | None = None) -> None:
        for key, worker in self._workers.items():
            if which(worker.order) and (ranks is None or worker.order.rank in ranks):
                self._warm.kill(key)

    def _started(self, key: str, pid: int) -> None:
        self._workers[key].pid, order = pid, self._workers[key].order
        self._outgoing.put_nowait(WorkerStarted(job_id=order.job_id, attempt=order.attempt, rank=order.rank, pid=pid))

    def _exited(self, key: str, status: int) -> None:
        worker = self._workers.pop(key)
        order = worker.order
        self._queue_log(worker, ended=True)
        tail = worker.log.tail()
        self._outgoing.put_nowait(
            WorkerExited(job_id=order.job_id, attempt=order.attempt, rank=order.rank, status=status, tail=tail)
        )
        shutil.rmtree(worker.folder, ignore_errors=True)
        self._forget(order.job_id)

    def _queue_log(self, worker: RunningWorker, ended: bool = False) -> None:
        order = worker.order
        while ended or self._outgoing.qsize() < MOST_QUEUED:
            text, cut = worker.log.unsent(ended)
            if not text and not cut:
                return
            self._outgoing.put_nowait(
                LogLines(job_id=order.job_id, attempt=order.attempt, rank=order.rank, text=text, cut=cut)
            )

    async def _send(self, channel: ClientConnection) -> None:
        while True:
            message = await self._outgoing.get()
            await channel.send(message.model_dump_json())

    async def _report_load(self, channel: ClientConnection) -> None:
        while True:
            pids = [worker.pid for worker in self._workers.values() if worker.pid is not None]
            await channel.send(self._load.read(pids, facts.available_memory()).model_dump_json())
            await asyncio.sleep(LOAD_EVERY_S)

    async def _send_logs(self) -> None:
        while True:
            await asyncio.sleep(LOG_EVERY_S)
            for worker in self._workers.values():
                self._queue_log(worker)


async def run_agent(args: AgentArgs, parent: asyncio.StreamReader | None = None) -> None:
    """Run until a signal, or until `parent` ends. Raises PacelineError where the master refuses this node."""
    running = asyncio.create_task(Agent(args).run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    if parent is not None:
        watching = asyncio.create_task(parent.read())
        watching.add_done_callback(lambda _: running.cancel())
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def _serve_parent() -> None:
    parent = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(parent), sys.stdin)
    args = AgentArgs.model_validate_json(await parent.readline())
    configure_log(args.log_level)
    await run_agent(args, parent)


def main() -> int:
    try:
        asyncio.run(_serve_parent())
    except PacelineError as error:
        print(f"paceline agent: {error}", file=sys.stderr)  # noqa: T201 - its last word
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
