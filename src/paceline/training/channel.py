"""A worker's channel to the master: one WebSocket, JSON both ways."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from pydantic import BaseModel
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from paceline.messages.message import MAX_MESSAGE_BYTES, Message
from paceline.messages.to_worker import EndScript, GiveUp, ToWorker, to_worker
from paceline.tls import trusting


class WorkerEnv(BaseModel):
    """All that an agent tells a worker that it starts. job: the folder that the job's workers on this node share.

    copies: another such folder, in memory, that stays from one attempt to the next.
    """

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
    job: str
    copies: str
    log: str
    ca: str | None = None


OPEN_WITHIN_S, CLOSED_WITHIN_S = 30.0, 5.0


class MasterGone(Exception):
    """The channel closed; this attempt is over for this worker."""


class Channel:
    """send may be called from any thread; receive from one. `interrupt(order)` is called in the reading thread."""

    def __init__(self, env: WorkerEnv, interrupt: Callable[[GiveUp | EndScript], None]) -> None:
        self._interrupt = interrupt
        self._orders: queue.Queue[ToWorker | None] = queue.Queue()
        where = urlencode({"job_id": env.job_id, "attempt": env.attempt, "rank": env.rank})
        url = f"{env.master_url.replace('http', 'ws', 1)}/api/v1/channels/worker?{where}"
        tls: dict[str, Any] = {"ssl": trusting(env.ca)} if url.startswith("wss") else {}
        late = threading.Timer(OPEN_WITHIN_S + CLOSED_WITHIN_S, _end_unheard, [env.master_url])
        late.daemon = True
        late.start()
        try:
            self._socket: ClientConnection = connect(
                url,
                additional_headers={"Authorization": f"Bearer {env.secret}"},
                max_size=MAX_MESSAGE_BYTES,
                compression=None,
                proxy=None,
                open_timeout=OPEN_WITHIN_S,
                **tls,
            )
        finally:
            late.cancel()
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def _read(self) -> None:
        """Orders wait for the main thread; what ends its waiting, for a lost peer or a script, must not."""
        with suppress(ConnectionClosed):
            for text in self._socket:
                order = to_worker.validate_json(text)
                if isinstance(order, GiveUp | EndScript):
                    self._interrupt(order)
                else:
                    self._orders.put(order)
        self._orders.put(None)

    def send(self, message: Message) -> None:
        try:
            self._socket.send(message.model_dump_json())
        except ConnectionClosed as closed:
            raise MasterGone from closed

    def receive(self) -> ToWorker:
        order = self._orders.get()
        if order is None:
            raise MasterGone
        return order


def _end_unheard(url: str) -> None:
    """End this process, so that its agent tells of it: websockets may join a thread for ever that waits inside TLS."""
    print(f"no answer from the master at {url} within {OPEN_WITHIN_S:.0f} s", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(1)
