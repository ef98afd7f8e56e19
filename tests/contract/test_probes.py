"""Probes on every engine: a job is measured before it is planned, and nothing of that is seen in what it comes to."""

from __future__ import annotations

import math
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import paceline as pl

from workloads import Cnn, spec

SHORT = {"stop": pl.MaxSteps(4)}


class Batched(torch.nn.Module):
    """Knows the size of its microbatches in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Cnn()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x.reshape(8, 64) if self.training else x)


def states(job: pl.Job) -> list[str]:
    return [event.data["state"] for event in job.events() if event.kind == "state"]


def rows(job: pl.Job, kind: str) -> list[dict[str, Any]]:
    return [event.data for event in job.events() if event.kind == kind]


def test_a_job_is_probed_once_its_digest_stays_and_the_next_of_its_kind_is_planned_without(
    cluster: pl.Client, client: pl.Client
) -> None:
    expected = client.submit(spec(Batched, workers=1, **SHORT)).result(timeout=120).digest
    first = cluster.submit(spec(Batched, **SHORT))
    result = first.result(timeout=120)
    assert result.digest == expected
    assert states(first) == ["QUEUED", "PLANNING", "QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]
    (row,) = rows(first, "probed")
    assert [cell["samples"] for cell in row["cells"]] == [8]  # its code takes no 2 or 4
    assert row["cell_samples"] == 8
    assert 0 < row["cells"][0]["seconds"] < 1
    parameters = 4 * sum(p.numel() for p in Cnn().parameters())
    assert row["exchange_bytes"] == parameters
    assert 4 * parameters <= row["state_bytes"] < 4 * parameters + 2000  # AdamW's; and counters
    assert row["activation_bytes"] > 8 * 8 * 64 * 4
    assert row["worker_bytes"] > row["state_bytes"]
    assert f"probed on {row['node']}" in result.plan.summary
    second = cluster.submit(spec(Batched, seed=1, **SHORT))
    assert "measured before, in a job of this kind" in second.result(timeout=120).plan.summary
    assert "PLANNING" not in states(second)


@pytest.mark.slow
def test_the_times_of_half_and_quarter_microbatches_are_measured_too(cluster: pl.Client) -> None:
    job = cluster.submit(spec(lambda: Cnn(16), batch_size=128, **SHORT))
    job.result(timeout=120)
    (row,) = rows(job, "probed")
    cells = {cell["samples"]: cell["seconds"] for cell in row["cells"]}
    assert list(cells) == [4, 8, 16]
    assert all(math.isfinite(seconds) and seconds > 0 for seconds in cells.values())


def larger_than_memory() -> torch.nn.Module:
    width = math.isqrt(psutil.virtual_memory().total // 4)  # the parameters alone take all of it
    return torch.nn.Sequential(torch.nn.Linear(64, width), torch.nn.Linear(width, width), torch.nn.Linear(width, 10))


class Unforeseen(torch.nn.Module):
    """Its forward can't run on tensors without data, and asks for more than there is."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if float(x.sum()) != 0.0:
            torch.ones(psutil.virtual_memory().total // 2)
        return self.head(x)


@pytest.mark.parametrize("model", [larger_than_memory, Unforeseen], ids=["by fake tensors", "by the limit"])
def test_a_model_that_does_not_fit_is_refused_with_the_numbers_and_nothing_is_started(
    cluster: pl.Client, model: Any
) -> None:
    unseen = spec(model, sync="exact", **SHORT)  # else the client would tell its size, and it would not be taken
    job = cluster.submit(unseen)
    with pytest.raises(pl.Unplaceable, match=r"needs 1 worker.* [\d.]+ GiB each"):
        job.result(timeout=120)
    assert states(job) == ["QUEUED", "PLANNING", "QUEUED", "FAILED"]
    (row,) = rows(job, "probed")  # its own answer: nobody had to kill it
    assert (row["fits"], row["cells"]) == (False, [])
    assert row["worker_bytes"] > row["memory"]
    with pytest.raises(pl.Unplaceable):  # the next of the kind is not even taken
        cluster.submit(unseen)


def killed_in_the_probe(mark: Path) -> Any:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    generator = torch.Generator().manual_seed(0)
    return torch.utils.data.TensorDataset(torch.rand(640, 64, generator=generator), torch.arange(640) % 10)


def test_a_lost_probe_costs_the_job_nothing_but_accuracy(cluster: pl.Client, tmp_path: Path) -> None:
    job = cluster.submit(spec(train_data=partial(killed_in_the_probe, tmp_path / "mark"), **SHORT))
    summary = job.result(timeout=120).plan.summary
    assert "not probed: the probe on" in summary
    assert "was lost: signal 9" in summary
    assert rows(job, "probed") == []
    assert rows(job, "probe_missed")


class Raises(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("colour")


def test_what_a_users_code_raises_in_a_probe_is_told_as_from_training(cluster: pl.Client) -> None:
    job = cluster.submit(spec(Raises, **SHORT))
    with pytest.raises(pl.UserCodeError, match="KeyError: 'colour'") as caught:
        job.result(timeout=120)
    assert 'raise KeyError("colour")' in caught.value.traceback
    assert "STARTING" not in states(job)
