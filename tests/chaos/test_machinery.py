"""Faults of what carries the workers: all of them at once, agents, fork servers, the master."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import paceline as pl
from paceline.client.embedded import start_master
from paceline.settings import MasterSettings
from paceline.testing.faults import Fault, FaultPlan

from helpers import ended, wait_until
from points import job_of, slow

EndsWell = Callable[[pl.Job], pl.Result]
Inflict = Callable[[FaultPlan, pl.Job], list[Fault]]


def pids_of(job: pl.Job) -> list[int]:
    return [worker["pid"] for worker in job.workers() if worker["pid"] is not None]


@pytest.mark.parametrize("checkpoint_every", [10, *slow(None)])
def test_a_kill_of_all_workers_at_once(
    cluster: pl.Client, ends_well: EndsWell, inflict: Inflict, checkpoint_every: int | None
) -> None:
    job = cluster.submit(job_of(3, checkpoint_every=checkpoint_every))
    assert inflict(FaultPlan().kill_all(at_step=30), job)
    ends_well(job)
    assert job.info()["attempt"] == 2


@pytest.mark.parametrize("workers", [5, *slow(1)])
def test_a_kill_of_a_fork_server_ends_its_workers_and_others_take_their_places(
    cluster: pl.Client, ends_well: EndsWell, inflict: Inflict, workers: int
) -> None:
    job = cluster.submit(job_of(workers, checkpoint_every=10))
    wait_until(lambda: len(pids_of(job)) == workers)
    pids = pids_of(job)
    assert inflict(FaultPlan().kill_fork_server(rank=0, at_step=30), job)
    ends_well(job)
    wait_until(lambda: all(map(ended, pids)))


@pytest.mark.parametrize("workers", [5, *slow(1)])
def test_a_kill_of_an_agent_ends_its_workers_and_others_take_their_places(
    cluster: pl.Client, ends_well: EndsWell, inflict: Inflict, workers: int
) -> None:
    job = cluster.submit(job_of(workers, checkpoint_every=10))
    wait_until(lambda: len(pids_of(job)) == workers)
    pids = pids_of(job)
    assert inflict(FaultPlan().kill_agent(rank=0, at_step=30), job)
    ends_well(job)
    wait_until(lambda: all(map(ended, pids)))


def test_a_kill_of_a_fork_server_and_its_agent_at_once_leaves_no_worker(
    cluster: pl.Client, ends_well: EndsWell, count_faults: Callable[[int], None]
) -> None:
    job = cluster.submit(job_of(2, checkpoint_every=10))
    wait_until(lambda: len(pids_of(job)) == 2)
    pids = pids_of(job)
    agents = {psutil.Process(pid).parent().parent() for pid in pids}
    servers = {psutil.Process(pid).parent() for pid in pids}
    for process in (*servers, *agents):  # an agent that outlives its server would end the workers itself
        process.kill()
    count_faults(len(agents | servers))
    ends_well(job)
    wait_until(lambda: all(map(ended, pids)))


@pytest.mark.parametrize("seed", slow(*range(1, 9)))
def test_a_master_killed_at_random_moments_finds_its_job_again(
    ends_well: EndsWell, count_faults: Callable[[int], None], tmp_path: Path, seed: int
) -> None:
    print(f"seed={seed}")
    chance = random.Random(seed)
    settings = MasterSettings(folder=tmp_path, port=0, agents=2, cores=4, parent_pipe=True)
    job_id = None
    for life in range(3):
        process, ready = start_master(settings)
        try:
            with pl.Client(ready["url"], ready["token"]) as client:
                wait_until(lambda client=client: len(client.nodes()) == 2)
                job = client.job(job_id) if job_id else client.submit(job_of(2, checkpoint_every=5))
                job_id = job.id
                if life == 2:
                    ends_well(job)
                else:
                    wait_until(lambda job=job: bool(job.workers()))
                    time.sleep(chance.uniform(0, 1.5))
        finally:
            process.send_signal(signal.SIGKILL if life < 2 else signal.SIGTERM)
            process.wait()
    count_faults(2)
