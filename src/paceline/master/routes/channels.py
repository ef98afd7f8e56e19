"""The WebSockets: one for each agent, one for each worker. Both dial the master; nothing dials them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import structlog
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from paceline import versions
from paceline.errors import PacelineError
from paceline.master.cluster import SendMessage
from paceline.master.context import Master, bearer, caller_of
from paceline.messages.from_agent import (
    AgentHello,
    Calibrated,
    FromAgent,
    LinkProbed,
    Load,
    LogLines,
    ProbeFailed,
    ProbeListening,
    WorkerExited,
    WorkerStarted,
    from_agent,
)
from paceline.messages.from_worker import from_worker
from paceline.messages.message import Message
from paceline.messages.to_agent import Refused, Welcome

FORBIDDEN = 4403
AGENT_SILENT_BOUND_S = 15.0  # it reports its load every two seconds; TCP notices a pulled cable after many minutes

log = structlog.get_logger("channels")
router = APIRouter(prefix="/channels")


@contextlib.contextmanager
def _outbox(socket: WebSocket) -> Iterator[SendMessage]:
    """A way to send that never blocks and keeps the order."""
    waiting: asyncio.Queue[Message] = asyncio.Queue()

    async def drain() -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the reading side sees the end, and acts on it
            while True:
                await socket.send_text((await waiting.get()).model_dump_json())

    draining = asyncio.create_task(drain())
    try:
        yield waiting.put_nowait
    finally:
        draining.cancel()


@router.websocket("/agent")
async def agent(socket: WebSocket) -> None:
    """An agent's channel; the node is in the cluster as long as it is open."""
    master: Master = socket.app.state.master
    try:
        allowed = caller_of(master, bearer(socket)).role == "node"
    except PacelineError:
        allowed = False
    if not allowed:
        await socket.close(FORBIDDEN)  # before accepting, this answers 403
        return
    await socket.accept()
    node_id: str | None = None
    try:
        hello = await _heard(socket)
        if not isinstance(hello, AgentHello):
            return
        try:
            versions.check(hello.versions, master.versions, f"node {hello.name}")
        except PacelineError as refusal:
            await socket.send_text(Refused(error=refusal.to_json()).model_dump_json())
            return
        with _outbox(socket) as send:
            node_id = master.controller.node_joined(hello, send)
            log.info("node_joined", node=node_id, cores=hello.cores, hardware_class=hello.hardware_class)
            send(Welcome(node_id=node_id))
            with contextlib.suppress(WebSocketDisconnect):  # the ordinary way to leave
                while True:
                    message = await _heard(socket)
                    if not master.cluster.is_linked(node_id, send):
                        return  # it dialled again since
                    _agent_says(master, node_id, message)
    except TimeoutError:
        log.warning("agent_silent", node=node_id, bound_s=AGENT_SILENT_BOUND_S)
    except (WebSocketDisconnect, ValidationError) as error:
        log.warning("agent_channel_broke", node=node_id, error=str(error)[:200])
    finally:
        if node_id is not None and master.cluster.is_linked(node_id, send):
            log.info("node_left", node=node_id)
            master.controller.node_left(node_id)


async def _heard(socket: WebSocket) -> FromAgent:
    """An agent's next message. Raises TimeoutError where it is silent for long, WebSocketDisconnect where it left."""
    async with asyncio.timeout(AGENT_SILENT_BOUND_S):
        text = await socket.receive_text()
    return from_agent.validate_json(text)


def _agent_says(master: Master, node_id: str, message: FromAgent) -> None:
    match message:
        case Load():
            master.cluster.report(node_id, message)
        case Calibrated():
            master.cluster.calibrated(node_id, message.speed)
        case ProbeListening() | LinkProbed() | ProbeFailed():
            master.controller.links.answered(message)
        case LogLines():
            master.controller.log_lines(message)
        case WorkerStarted():
            key = (message.job_id, message.attempt, message.rank)
            if key in master.cluster.workers:
                master.cluster.workers[key].pid = message.pid
        case WorkerExited():
            key = (message.job_id, message.attempt, message.rank)
            how = f"exit code {message.status}" if message.status >= 0 else f"signal {-message.status}"
            last = message.tail.strip().splitlines()[-1:] if message.status else []
            master.controller.worker_ended(key, ": ".join([how, *last]))


@router.websocket("/worker")
async def worker(socket: WebSocket, job_id: str, attempt: int, rank: int) -> None:
    """A worker's channel; its secret opens this one place in this one attempt."""
    master: Master = socket.app.state.master
    key = (job_id, attempt, rank)
    link = master.cluster.workers.get(key)
    try:
        allowed = link is not None and bearer(socket) == link.secret
    except PacelineError:
        allowed = False
    if link is None or not allowed:
        await socket.close(FORBIDDEN)
        return
    await socket.accept()
    try:
        with _outbox(socket) as send:
            link.send = send
            async for text in socket.iter_text():
                if master.cluster.workers.get(key) is not link:
                    await socket.close()  # it counts as lost, and yet lives: the end of its channel ends it
                    return
                master.controller.worker_says(key, from_worker.validate_json(text))
    except (WebSocketDisconnect, ValidationError) as error:
        log.warning("worker_channel_broke", job=job_id, attempt=attempt, rank=rank, error=str(error)[:200])
    finally:
        link.send = None
