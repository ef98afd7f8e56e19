"""What several tests need: masters with given settings, bounded waits, and whether a process has ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

import paceline as pl
from paceline.client.embedded import EmbeddedMaster, start_master
from paceline.settings import MasterSettings


def wait_until(holds: Callable[[], bool], within_s: float = 120.0) -> None:
    """Poll until it holds; fail the test where it never does."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.02)


def ended(pid: int) -> bool:
    """Whether the process is gone, or only waits for its parent to notice."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def steps_of_the_last_attempt(job: pl.Job) -> list[int]:
    """After which steps it had committed something, in its order."""
    events = job.events_so_far()
    planned = max(at for at, event in enumerate(events) if event.kind == "planned")
    return [event.data["step"] for event in events[planned:] if event.kind == "progress"]


def whole_log(job: pl.Job) -> str:
    """All that the workers of a job printed: their last lines may come after its end."""
    return "".join(job.follow_logs())


@contextlib.contextmanager
def running_master(folder: Path, **settings: object) -> Iterator[pl.Client]:
    """A master with these settings, and a client of it."""
    process, ready = start_master(MasterSettings(folder=folder, port=0, parent_pipe=True, **settings))  # type: ignore[arg-type]
    master = EmbeddedMaster(process, ready["url"], ready["token"], None)
    try:
        with pl.Client(ready["url"], ready["token"]) as client:
            yield client
    finally:
        master.close()
