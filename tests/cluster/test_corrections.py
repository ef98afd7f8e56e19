"""A running job is corrected by what it shows: shares follow speed and nothing else, and who only delays it is let go.

Workers rest in each microbatch, so that what is measured is not the noise of a busy machine.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import paceline as pl

from helpers import running_master, wait_until
from workloads import Cnn, spec

REST_S = 0.01
WARM_UP_S = 1.0
LATE_S = 0.4
_warm = False


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Rests, and far longer for the first time in a process."""
    global _warm
    time.sleep(REST_S if _warm else WARM_UP_S)
    _warm = True
    return torch.nn.functional.cross_entropy(outputs, targets)


class SometimesLate(torch.optim.SGD):
    """In one worker, the first to come, each step takes longer while FOLDER/late exists."""

    def __init__(self, params: Any, folder: str) -> None:
        super().__init__(params, lr=0.05, momentum=0.9)
        self._folder = Path(folder)
        try:
            os.mkdir(self._folder / "taken")
            self._chosen = True
        except FileExistsError:
            self._chosen = False

    def step(self, closure: Any = None) -> Any:
        if self._chosen and (self._folder / "late").exists():
            time.sleep(LATE_S)
        return super().step(closure)


def job_spec(folder: Path, steps: int, workers: int | None = None) -> pl.TrainSpec:
    folder.mkdir()
    torch.manual_seed(0)
    optimizer = partial(SometimesLate, folder=str(folder))
    return spec(
        Cnn(16), workers=workers, loss=loss, optimizer=optimizer, val_data=None, metrics={},
        drop_last=True, stop=pl.MaxSteps(steps),
    )  # fmt: skip


def progress(job: pl.Job) -> int:
    return max((event.data["step"] for event in job.events_so_far() if event.kind == "progress"), default=0)


@pytest.mark.slow
def test_a_newcomers_slow_first_step_costs_it_no_share(client: pl.Client, tmp_path: Path) -> None:
    job = client.submit(job_spec(tmp_path / "job", steps=100_000, workers=1))
    wait_until(lambda: progress(job) > 5)
    job.scale(2)
    wait_until(lambda: "worker_joined" in [event.kind for event in job.events_so_far()])
    joined, shares = progress(job), set()
    while progress(job) < joined + 40:
        shares |= {tuple(worker.share for worker in job.plan.workers)}
        time.sleep(0.05)
    job.cancel()
    assert shares == {((0, 4), (4, 8))}


@pytest.mark.slow
def test_a_worker_that_only_delays_the_others_is_let_go_with_the_numbers_and_the_digest_stays(
    client: pl.Client, tmp_path: Path
) -> None:
    steps = 66  # three epochs
    reference = client.submit(job_spec(tmp_path / "reference", steps, workers=1))
    with running_master(tmp_path / "master", cores=2) as two:
        job = two.submit(job_spec(tmp_path / "job", steps))
        wait_until(lambda: progress(job) > 10)
        assert len(job.workers()) == 2
        (tmp_path / "job" / "late").touch()
        result = job.result(timeout=100)
        said = [event.data for event in job.events() if event.kind == "corrected"]
    assert [data["change"] for data in said] == ["drop"]
    assert said[0]["step_s"] > 1.5 * said[0]["predicted_step_s"] > 8 * REST_S
    assert 0 < said[0]["steps_to_go"] < steps
    assert "a step is predicted to take" in said[0]["reason"]
    assert len(result.plan.workers) == 1
    assert result.digest == reference.result(timeout=100).digest
    assert [row for row in result.ledger if row["committed"] != row["expected"] or row["twice"]] == []
