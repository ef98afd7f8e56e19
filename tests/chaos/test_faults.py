"""Seeded faults at random moments: each job ends in the reference digest, with every sample once per epoch."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import Any

import pytest
import torch

import paceline as pl
from paceline.testing.faults import FaultPlan

from helpers import wait_until
from workloads import Cnn, spec

LONG: dict[str, Any] = {
    "model": partial(Cnn, 16),
    "stop": pl.MaxEpochs(20),
    "batch_size": 48,
    "eval_every": 37,
    "keep": "best:val_loss",
    "optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "clip_grad_norm": 1.0,
}


@pytest.fixture(scope="module")
def reference(client: pl.Client) -> str:
    return client.submit(spec(workers=1, **LONG)).result(timeout=200).digest


def ends_well(job: pl.Job, reference: str) -> pl.Result:
    result = job.result(timeout=200)
    assert result.digest == reference
    assert [row for row in result.ledger if row["committed"] != row["expected"] or row["twice"]] == []
    assert len(result.ledger) == 20
    return result


def test_survivors_go_on_in_their_processes_and_a_new_worker_joins(client: pl.Client, reference: str) -> None:
    job = client.submit(spec(workers=3, **LONG))
    wait_until(lambda: any(worker["last_step"] > 100 for worker in job.workers()))
    before = {worker["rank"]: worker["pid"] for worker in job.workers()}
    os.kill(before[0], signal.SIGKILL)
    ends_well(job, reference)
    kinds = [event.kind for event in job.events()]
    assert kinds.count("worker_lost") == 1
    assert kinds.count("worker_joined") == 1
    assert job.info()["attempt"] == 1


@pytest.mark.parametrize("seed", [0, 3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 24))])
def test_random_kills_change_neither_the_digest_nor_the_ledger(client: pl.Client, reference: str, seed: int) -> None:
    job = client.submit(spec(workers=2 + seed % 3, **LONG))
    wait_until(lambda: job.state == "RUNNING")
    hit = FaultPlan.random(seed, count=5, mean_s=0.8).run(job)
    assert hit
    ends_well(job, reference)


def test_a_worker_that_hangs_is_named_with_its_stack_and_replaced(client: pl.Client, reference: str) -> None:
    job = client.submit(spec(workers=2, **LONG))
    wait_until(lambda: any(worker["last_step"] > 100 for worker in job.workers()))
    os.kill(job.workers()[1]["pid"], signal.SIGSTOP)
    ends_well(job, reference)
    lost = [event.data for event in job.events() if event.kind == "worker_lost"]
    assert lost[0]["rank"] == 1
    assert "last seen at" in lost[0]["reason"]
    assert ".py:" in lost[0]["reason"]


def test_scaling_up_and_down_keeps_the_digest(client: pl.Client, reference: str) -> None:
    job = client.submit(spec(workers=1, **LONG))
    wait_until(lambda: any(worker["last_step"] > 50 for worker in job.workers()))
    job.scale(3)
    wait_until(lambda: len(job.workers()) == 3)
    wait_until(lambda: [event.kind for event in job.events_so_far()].count("worker_joined") == 2)
    job.scale(2)
    ends_well(job, reference)
    kinds = [event.kind for event in job.events()]
    assert kinds.count("worker_released") == 1
    assert "worker_lost" not in kinds
