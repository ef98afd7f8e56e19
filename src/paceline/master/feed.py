"""Events for whoever watches a job now. The store holds them for whoever asks later."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

MAX_WAITING = 1000


@dataclass(frozen=True)
class FeedEvent:
    """seq: the event row's number, None for a passing one that is not stored."""

    seq: int | None
    at: float
    kind: str
    data: dict[str, Any]


class Feed:
    """Publish and subscribe within the master's loop."""

    def __init__(self) -> None:
        self._watchers: defaultdict[str, set[asyncio.Queue[FeedEvent]]] = defaultdict(set)

    def publish(self, job_id: str, event: FeedEvent) -> None:
        for queue in self._watchers.get(job_id, ()):
            if event.seq is not None or queue.qsize() < MAX_WAITING:  # a slow watcher misses passing ones only
                queue.put_nowait(event)

    @contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Queue[FeedEvent]]:
        queue: asyncio.Queue[FeedEvent] = asyncio.Queue()
        self._watchers[job_id].add(queue)
        try:
            yield queue
        finally:
            self._watchers[job_id].discard(queue)
            if not self._watchers[job_id]:
                del self._watchers[job_id]
