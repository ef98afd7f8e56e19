"""Checkpoints that rot on the master's disk: the one before is taken, and the model is the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import paceline as pl

from helpers import running_master, wait_until
from workloads import Rested, spec

LONG: dict[str, Any] = {
    "model": Rested,
    "stop": pl.MaxEpochs(6),
    "batch_size": 48,
    "eval_every": 13,
    "keep": "best:val_loss:max",  # what is "best" so is found early, and must outlive every loss
    "checkpoint_every": 10,
    "optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
}


@pytest.fixture(scope="module")
def reference(client: pl.Client) -> pl.Result:
    return client.submit(spec(workers=1, **LONG)).result(timeout=200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("master")


@pytest.fixture(scope="module")
def master(folder: Path) -> Iterator[pl.Client]:
    with running_master(folder, cores=4) as client:
        yield client


def checkpoints(folder: Path, job: pl.Job) -> list[tuple[int, Path]]:
    """(step, file) of the job's checkpoints as the master has them, newest first."""
    with contextlib.closing(sqlite3.connect(folder / "paceline.db")) as database:
        ((text,),) = database.execute("SELECT checkpoints FROM jobs WHERE id = ?", [job.id])
    refs = [kept["ref"] for kept in json.loads(text)]
    return [(ref["step"], folder / "blobs" / ref["blob"]) for ref in refs]


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def end_all_workers(job: pl.Job, after: Callable[[], None]) -> None:
    """Stop them, so that no checkpoint is written meanwhile; then kill them."""
    pids = [worker["pid"] for worker in job.workers()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    after()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("damage", "damaged"),
    [
        pytest.param(flip_a_byte, 1, id="other bytes"),
        pytest.param(cut_short, 1, id="too short", marks=pytest.mark.slow),
        pytest.param(Path.unlink, 1, id="gone", marks=pytest.mark.slow),
        pytest.param(flip_a_byte, 2, id="both", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_costs_steps_and_neither_the_model_nor_the_ledger(
    master: pl.Client, folder: Path, reference: pl.Result, held: Path, damage: Callable[[Path], None], damaged: int
) -> None:
    job = master.submit(spec(workers=2, **{**LONG, "model": partial(Rested, held_by=str(held))}))
    wait_until(lambda: [event.kind for event in job.events_so_far()].count("checkpoint") >= 3)
    found: list[tuple[int, Path]] = []

    def rot() -> None:
        found.extend(checkpoints(folder, job))
        for _, file in found[:damaged]:
            damage(file)

    end_all_workers(job, rot)
    held.unlink()
    result = job.result(timeout=200)
    assert len(found) == 2
    lost = [event.data for event in job.events() if event.kind == "checkpoint_lost"]
    newest, before = (step for step, _ in found)
    assert [(event["step"], event["resumes_from"]) for event in lost] == [(newest, before), (before, 0)][:damaged]
    assert result.digest == reference.digest
    assert (result.step, result.history) == (reference.step, reference.history)
    assert [row for row in result.ledger if row["committed"] != row["expected"] or row["twice"]] == []


@pytest.mark.slow
def test_the_best_model_rides_in_the_checkpoint_that_is_resumed(
    master: pl.Client, folder: Path, reference: pl.Result, held: Path
) -> None:
    """It was found before the checkpoint that the last attempt starts from, and is delivered all the same."""
    assert reference.step < reference.history[-1]["step"] / 2
    job = master.submit(spec(workers=1, **{**LONG, "model": partial(Rested, held_by=str(held))}))
    wait_until(lambda: any(step > reference.step for step, _ in checkpoints(folder, job)))
    os.kill(job.workers()[0]["pid"], signal.SIGKILL)
    held.unlink()
    result = job.result(timeout=200)
    assert job.info()["attempt"] == 2
    assert (result.step, result.digest) == (reference.step, reference.digest)


@pytest.mark.slow
def test_dropped_checkpoints_leave_the_disk(master: pl.Client, folder: Path) -> None:
    job = master.submit(spec(workers=1, **{**LONG, "stop": pl.MaxEpochs(100_000)}))
    wait_until(lambda: len(checkpoints(folder, job)) == 2)
    first = [file for _, file in checkpoints(folder, job)]
    wait_until(lambda: not any(file.exists() for file in first))
    job.cancel()
    job.wait(60)
    wait_until(lambda: not any(file.exists() for _, file in checkpoints(folder, job)))
