"""A worker's channel to the master: one WebSocket, JSON both ways."""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import urlencode

from pydantic import BaseModel
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from paceline.messages import MAX_MESSAGE_BYTES, Message, ToWorker, to_worker


class WorkerEnv(BaseModel):
    """All that an agent tells a worker that it starts."""

    master_url: str
    job_id: str
    attempt: int
    rank: int
    secret: str
    threads: int
    device: str
    address: str
    cache: str
    shared: list[str]
    scratch: str
    log: str
    ca: str | None = None


class MasterGone(Exception):
    """The channel closed; this attempt is over for this worker."""


class Channel:
    """send may be called from any thread; receive from one."""

    def __init__(self, env: WorkerEnv) -> None:
        where = urlencode({"job_id": env.job_id, "attempt": env.attempt, "rank": env.rank})
        url = f"{env.master_url.replace('http', 'ws', 1)}/api/v1/channels/worker?{where}"
        tls: dict[str, Any] = {"ssl": ssl.create_default_context(cafile=env.ca)} if url.startswith("wss") else {}
        self._socket: ClientConnection = connect(
            url,
            additional_headers={"Authorization": f"Bearer {env.secret}"},
            max_size=MAX_MESSAGE_BYTES,
            compression=None,
            proxy=None,
            open_timeout=30,
            **tls,
        )

    def send(self, message: Message) -> None:
        try:
            self._socket.send(message.model_dump_json())
        except ConnectionClosed as closed:
            raise MasterGone from closed

    def receive(self) -> ToWorker:
        try:
            return to_worker.validate_json(self._socket.recv())
        except ConnectionClosed as closed:
            raise MasterGone from closed

    def close(self) -> None:
        self._socket.close()
