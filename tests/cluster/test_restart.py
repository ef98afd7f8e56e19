"""A master that dies and comes back."""

from __future__ import annotations

import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import paceline as pl
from paceline.client.embedded import start_master
from paceline.settings import MasterSettings

from helpers import ended, running_master, steps_of_the_last_attempt, wait_until
from workloads import Rested, spec

LONG: dict[str, Any] = {"stop": pl.MaxEpochs(4), "batch_size": 48, "checkpoint_every": 10}


def test_a_killed_master_finds_its_job_again_and_ends_it_with_the_same_digest(
    tmp_path: Path, client: pl.Client, held: Path
) -> None:
    expected = client.submit(spec(Rested, workers=1, **LONG)).result(timeout=120).digest
    process, ready = start_master(MasterSettings(folder=tmp_path / "master", port=0, cores=4, parent_pipe=True))
    with pl.Client(ready["url"], ready["token"]) as first:
        job = first.submit(spec(partial(Rested, held_by=str(held)), workers=2, **LONG))
        wait_until(lambda: any(event.kind == "checkpoint" for event in job.events_so_far()))
        pids = [worker["pid"] for worker in job.workers()]
        process.send_signal(signal.SIGKILL)
        process.wait()
        held.unlink()
    wait_until(lambda: all(map(ended, pids)))
    with running_master(tmp_path / "master", cores=4) as second:
        found = second.job(job.id)
        result = found.result(timeout=120)
        assert result.digest == expected
        assert [row for row in result.ledger if row["committed"] != row["expected"] or row["twice"]] == []
        assert found.info()["attempt"] == 2
        assert steps_of_the_last_attempt(found)[0] > 10
        with pytest.raises(pl.ModelUnknown, match="load_into"):
            _ = result.model
        assert result.load_into(Rested()).state_dict()["last.weight"].shape == (10, 32)


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_goes_on_from_its_checkpoint_on_another_engine_in_another_place_with_other_workers(
    tmp_path: Path, client: pl.Client, held: Path
) -> None:
    expected = client.submit(spec(Rested, workers=1, **LONG)).result(timeout=120).digest
    process, ready = start_master(MasterSettings(folder=tmp_path / "here", port=0, cores=1, parent_pipe=True))
    with pl.Client(ready["url"], ready["token"]) as first:
        job = first.submit(spec(partial(Rested, held_by=str(held)), workers=1, **LONG))
        job.scale(2)  # there is one core here, and two there
        wait_until(lambda: any(event.kind == "checkpoint" for event in job.events_so_far()))
        pids = [worker["pid"] for worker in job.workers()]
        process.send_signal(signal.SIGKILL)
        process.wait()
        held.unlink()
    wait_until(lambda: all(map(ended, pids)))
    shutil.move(tmp_path / "here", tmp_path / "there")
    with running_master(tmp_path / "there", engine="ray") as second:
        result = second.job(job.id).result(timeout=120)
        assert result.digest == expected
        assert len(result.plan.workers) == 2
        assert [row for row in result.ledger if row["committed"] != row["expected"] or row["twice"]] == []
        assert second.job(job.id).info()["attempt"] == 2
        assert steps_of_the_last_attempt(second.job(job.id))[0] > 10


def test_a_delivered_result_is_there_after_a_restart(tmp_path: Path) -> None:
    with running_master(tmp_path) as first:
        job = first.submit(spec())
        digest = job.result(timeout=60).digest
    with running_master(tmp_path) as second:
        assert second.job(job.id).result(timeout=60).digest == digest
