"""A job that leaves its nodes to another of higher priority, and is struck while it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import paceline as pl
from paceline.testing.sabotage import Sabotage

from helpers import running_master, wait_until
from points import job_of, slow
from workloads import Rested

MS = 0.001
EndsWell = Callable[[pl.Job], pl.Result]
Sabotages = Callable[..., Sabotage]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pl.Client]:
    """A client of a master with two places, where a job may be preempted as soon as it trains."""
    with running_master(tmp_path_factory.mktemp("small"), cores=2, min_run_s=0) as client:
        wait_until(lambda: len(client.nodes()) == 1)
        yield client


def at_copies(held: Path, fault: Sabotage | None = None) -> Callable[[], torch.nn.Module]:
    """Builds a held model, with a fault where its state is copied: for the first checkpoint, that is."""

    def build() -> torch.nn.Module:
        model = Rested(held_by=str(held))
        if fault is not None:
            model.register_state_dict_pre_hook(fault)
        return model

    return build


def preempted_by_another(client: pl.Client, low: pl.Job, held: Path, ends_well: EndsWell) -> pl.Job:
    """Let the job train, submit one of higher priority, and wait until both have ended well; the other."""
    wait_until(lambda: low.info()["step"] >= 5)
    high = client.submit(job_of(2, priority=5))
    wait_until(lambda: "preempted" in [event.kind for event in low.events_so_far()])
    held.unlink()
    ends_well(high)
    ends_well(low)
    (event,) = [event for event in low.events_so_far() if event.kind == "preempted"]
    assert event.data["reason"].startswith(f"preempted by {high.id} of priority 5")
    assert low.info()["attempt"] == 2
    assert ended_at(high) < ended_at(low)
    return high


def ended_at(job: pl.Job) -> float:
    return float(job.info()["ended_at"])


@pytest.mark.parametrize("workers", [2, *slow(1)])
def test_a_preempted_job_goes_on_from_its_last_commit_to_the_same_digest(
    small: pl.Client, ends_well: EndsWell, held: Path, workers: int
) -> None:
    low = small.submit(job_of(workers, model=at_copies(held), keep="last", checkpoint_every=10_000))
    preempted_by_another(small, low, held, ends_well)
    (checkpoint,) = [event.data["step"] for event in low.events_so_far() if event.kind == "checkpoint"]
    kinds = [(event.kind, event.data) for event in low.events_so_far() if event.kind in ("progress", "state")]
    until = next(i for i, (_, data) in enumerate(kinds) if data.get("state") == "WAITING")
    steps = [data["step"] for kind, data in kinds if kind == "progress"]
    assert [data["step"] for kind, data in kinds[:until] if kind == "progress"][-1] == checkpoint
    assert steps == sorted(set(steps))  # no step was done again


@pytest.mark.parametrize("workers", [2, *slow(1)])
@pytest.mark.parametrize("delay_ms", slow(0, 1, 3, 10))
def test_a_kill_while_a_preempted_job_writes_its_checkpoint(
    small: pl.Client, ends_well: EndsWell, sabotage: Sabotages, held: Path, workers: int, delay_ms: float
) -> None:
    fault = sabotage(delay_s=delay_ms * MS)
    low = small.submit(job_of(workers, model=at_copies(held, fault), keep="last", checkpoint_every=10_000))
    preempted_by_another(small, low, held, ends_well)
    assert fault.struck() == 1
