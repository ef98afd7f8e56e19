"""Faults drawn from a printed seed, at moments that nobody chose."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import paceline as pl
from paceline.testing.faults import Fault, FaultPlan, Kind

from helpers import steps_of_the_last_attempt, wait_until
from points import job_of, slow
from workloads import Rested

SLOWER = partial(Rested, rest_s=0.008)
MEMBERS: tuple[Kind, ...] = ("kill", "kill", "kill", "scale")
MACHINERY: tuple[Kind, ...] = ("kill", "scale", "kill_all", "kill_agent", "kill_fork_server")
EndsWell = Callable[[pl.Job], pl.Result]
Inflict = Callable[[FaultPlan, pl.Job], list[Fault]]


def pids(job: pl.Job) -> dict[int, int]:
    """Of the live workers, by rank."""
    return {worker["rank"]: worker["pid"] for worker in job.workers() if worker["pid"] is not None}


def kinds(job: pl.Job) -> list[str]:
    """Of the job's events so far."""
    return [event.kind for event in job.events_so_far()]


@pytest.mark.parametrize("seed", [0, *slow(*range(1, 40))])
def test_workers_killed_joined_and_drained_at_random_change_neither_the_digest_nor_the_ledger(
    cluster: pl.Client, ends_well: EndsWell, inflict: Inflict, seed: int
) -> None:
    print(f"seed={seed}")
    job = cluster.submit(job_of(2 + seed % 3, model=SLOWER, checkpoint_every=10))
    wait_until(lambda: job.state == "RUNNING")
    assert inflict(FaultPlan.random(seed, count=6, mean_s=0.4, kinds=MEMBERS), job)
    ends_well(job)


@pytest.mark.parametrize("seed", slow(*range(100, 115)))
def test_whatever_dies_at_random_changes_neither_the_digest_nor_the_ledger(
    cluster: pl.Client, ends_well: EndsWell, inflict: Inflict, seed: int
) -> None:
    print(f"seed={seed}")
    job = cluster.submit(job_of(2 + seed % 3, model=SLOWER, checkpoint_every=5))
    wait_until(lambda: job.state == "RUNNING")
    assert inflict(FaultPlan.random(seed, count=4, mean_s=1.0, kinds=MACHINERY), job)
    ends_well(job)


def test_survivors_go_on_in_their_processes_and_a_new_worker_joins(
    cluster: pl.Client, ends_well: EndsWell, inflict: Inflict, held: Path
) -> None:
    job = cluster.submit(job_of(3, model=partial(Rested, held_by=str(held))))
    wait_until(lambda: len(pids(job)) == 3)
    before = pids(job)
    inflict(FaultPlan().kill(rank=0, at_step=10), job)
    wait_until(lambda: set(pids(job)) == {1, 2, 3})
    assert pids(job) == {1: before[1], 2: before[2], 3: pids(job)[3]}
    wait_until(lambda: "worker_joined" in kinds(job))
    held.unlink()
    ends_well(job)
    assert kinds(job).count("worker_lost") == 1
    assert kinds(job).count("worker_joined") == 1
    steps = steps_of_the_last_attempt(job)
    assert steps == sorted(set(steps))  # no committed step is trained again
    assert job.info()["attempt"] == 1


def test_scaling_up_and_down_keeps_the_digest(
    cluster: pl.Client, ends_well: EndsWell, inflict: Inflict, held: Path
) -> None:
    job = cluster.submit(job_of(1, model=partial(Rested, held_by=str(held))))
    inflict(FaultPlan().scale(3, at_step=5), job)
    wait_until(lambda: kinds(job).count("worker_joined") == 2)
    inflict(FaultPlan().scale(2), job)
    wait_until(lambda: "worker_released" in kinds(job))
    held.unlink()
    ends_well(job)
    assert kinds(job).count("worker_released") == 1
    assert "worker_lost" not in kinds(job)
