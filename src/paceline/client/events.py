"""Server-sent events of a job, read until it ends, across broken connections."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from paceline.transfer import raise_for, unreachable

ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
READ_TIMEOUT_S = 60.0  # the master sends a sign of life every 15 s
RETRIES = 30
RETRY_AFTER_S = 1.0


@dataclass(frozen=True)
class Event:
    """kind: "state", "probed", "probe_missed", "planned", "progress", "live", "evaluated", "checkpoint",
    "checkpoint_lost", "warning", "scaled", "draining", "worker_lost", "worker_joined", "worker_released",
    "attempt_lost", "hung", "resumes", "copies_lost", "preempted", "gradient_confirmed", "node_quarantined",
    "straggler", "corrected", "cancelling", "saving", "reported".

    "live" ones are passing: they are not stored, and a reconnected client has missed them.
    """

    kind: str
    data: dict[str, Any]

    @property
    def ends_job(self) -> bool:
        return self.kind == "state" and self.data.get("state") in ENDED


def follow(http: httpx.Client, job_id: str, deadline: float | None = None) -> Iterator[Event]:
    """All events of a job, the past ones first; returns after the one that ends it, or at `deadline` (monotonic).

    A master that is away for RETRIES seconds in a row raises MasterUnreachable.
    """
    after, failures = 0, 0
    while True:
        try:
            for seq, event in _stream(http, job_id, after, deadline):
                failures, after = 0, seq or after
                if event is not None:
                    yield event
                    if event.ends_job:
                        return
                if deadline is not None and time.monotonic() >= deadline:
                    return
        except httpx.TransportError as error:
            if deadline is not None and time.monotonic() >= deadline:
                return
            failures += 1
            if failures > RETRIES:
                raise unreachable(http.base_url, error) from error
        time.sleep(RETRY_AFTER_S)


def past(http: httpx.Client, job_id: str) -> list[Event]:
    """The events of a job until now."""
    try:
        return [event for _, event in _stream(http, job_id, 0, None, follow=False) if event is not None]
    except httpx.TransportError as error:
        raise unreachable(http.base_url, error) from error


def _stream(
    http: httpx.Client, job_id: str, after: int, deadline: float | None, follow: bool = True
) -> Iterator[tuple[int | None, Event | None]]:
    """(seq, event) as they come; (None, None) for a sign of life."""
    read_s = READ_TIMEOUT_S if deadline is None else min(READ_TIMEOUT_S, max(0.01, deadline - time.monotonic()))
    timeout = httpx.Timeout(10.0, read=read_s)
    with http.stream(
        "GET", f"/api/v1/jobs/{job_id}/events", params={"after": after, "follow": follow}, timeout=timeout
    ) as response:
        raise_for(response)
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            if line.startswith(":"):
                yield None, None
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                seq = int(fields["id"]) if "id" in fields else None
                yield seq, Event(fields["event"], json.loads(fields["data"]))
                fields = {}
