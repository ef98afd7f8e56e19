"""What the master deletes, and what it must not."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from paceline.master.app import open_master, sweep
from paceline.master.committed import Checkpoint, Training
from paceline.master.context import Master
from paceline.master.delivery import Delivery
from paceline.master.job import Job
from paceline.master.retention import DAY_S, DELIVERED_DAYS, UNDELIVERED_DAYS
from paceline.master.states import Succeeded
from paceline.messages.from_agent import LogLines
from paceline.messages.message import CheckpointRef

from builders import submission

NOW = 1000 * DAY_S


@pytest.fixture
def master(tmp_path: Path) -> Master:
    return open_master(tmp_path)


def blob(master: Master, content: str, age_days: float) -> str:
    """A blob that was last used so long ago; its name."""
    name = hashlib.sha256(content.encode()).hexdigest()
    path = master.blobs.folder / name
    path.write_text(content)
    os.utime(path, (NOW - age_days * DAY_S,) * 2)
    return name


def job(master: Master, name: str, checkpoint: str = "", model: str = "", ended_days: float = 0.0) -> Job:
    """A job that trains, with a checkpoint, or one that has ended with a model; all of it in the store."""
    made = Job(name, submission(name))
    master.store.add_job(name, made.submission, now=0.0)
    if checkpoint:
        ref = CheckpointRef(step=1, blob=checkpoint, nbytes=1)
        made = replace(made, checkpoints=(Checkpoint(ref=ref, training=Training()),))
    if model:
        delivery = Delivery(
            blob=model, nbytes=1, digest="sha256:1", step=1, stop_reason="", reproducible=True, hardware_class="cpu"
        )
        made = replace(made, state=Succeeded(delivery))
    master.store.save(made, None, [], now=NOW - ended_days * DAY_S)
    master.logs.append(LogLines(job_id=name, attempt=1, rank=0, text="said\n"))
    return made


def test_a_sweep_deletes_what_no_job_needs_and_nothing_else(master: Master) -> None:
    kept = {
        blob(master, "checkpoint", 900): job(master, "running", checkpoint=blob(master, "checkpoint", 900)),
        blob(master, "new", 900): job(master, "new", model=blob(master, "new", 900), ended_days=UNDELIVERED_DAYS - 1),
        blob(master, "fetched", 900): job(
            master, "fetched", model=blob(master, "fetched", 900), ended_days=UNDELIVERED_DAYS + 3
        ),
        blob(master, "on its way", 0.5): None,
    }
    master.store.mark_delivered("fetched", now=NOW - (DELIVERED_DAYS - 1) * DAY_S)
    blob(master, "orphan", 1.5)
    job(master, "old", model=blob(master, "old", 900), ended_days=UNDELIVERED_DAYS + 1)
    job(master, "done", model=blob(master, "done", 900), ended_days=DELIVERED_DAYS + 2)
    master.store.mark_delivered("done", now=NOW - (DELIVERED_DAYS + 1) * DAY_S)

    assert sweep(master, NOW) == len("orphan") + len("old") + len("done")
    assert {path.name for path in master.blobs.folder.iterdir()} == set(kept)
    gone = {row.id for row in master.store.jobs() if row.delivery and not row.delivery["blob"]}
    assert gone == {"old", "done"}
    assert {row.id for row in master.store.jobs() if master.logs.page(row.id, 0)[0]} == {"running", "new", "fetched"}


def test_a_dropped_checkpoint_that_another_job_has_too_stays(master: Master) -> None:
    """Twins write the very same bytes."""
    shared, own = blob(master, "of both", 0), blob(master, "of one", 0)
    job(master, "twin", checkpoint=shared)
    master.controller._discard({shared, own})
    assert [path.name for path in master.blobs.folder.iterdir()] == [shared]


def test_a_sweep_makes_room_before_it_writes_anything(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    job(master, "old", model=blob(master, "old", 900), ended_days=UNDELIVERED_DAYS + 1)

    def full(_: str) -> None:
        raise OSError("the jobs' logs can't be written: database or disk is full")

    monkeypatch.setattr(master.logs, "forget", full)
    with pytest.raises(OSError, match="disk is full"):
        sweep(master, NOW)
    assert list(master.blobs.folder.iterdir()) == []
