"""What every engine promises: the same digests, whichever nodes train, and whatever is killed."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

import paceline as pl

from helpers import ended, steps_of_the_last_attempt, wait_until
from workloads import Rested, spec

LONG: dict[str, Any] = {"stop": pl.MaxEpochs(3), "checkpoint_every": 5}


@pytest.fixture(scope="module")
def reference(client: pl.Client) -> str:
    """The digest of the short job on one worker of another master."""
    return client.submit(spec(workers=1)).result(timeout=120).digest


@pytest.fixture(scope="module")
def long_reference(client: pl.Client) -> str:
    """The digest of the long job, likewise."""
    return client.submit(spec(Rested, workers=1, **LONG)).result(timeout=120).digest


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_digest_is_the_same_for_any_number_of_workers(cluster: pl.Client, reference: str, workers: int) -> None:
    result = cluster.submit(spec(workers=workers)).result(timeout=120)
    assert result.digest == reference
    assert len(result.plan.workers) == workers


def test_workers_beyond_one_node_spread_over_both(cluster: pl.Client) -> None:
    result = cluster.submit(spec(workers=6)).result(timeout=120)
    assert len({worker.node_name for worker in result.plan.workers}) == 2
    assert result.ledger == [{"epoch": 0, "expected": 1437, "committed": 1437, "twice": 0}]


def training(cluster: pl.Client, workers: int, held: Path) -> pl.Job:
    """The long job, which has done some steps and goes on slowly as long as it is held."""
    job = cluster.submit(spec(partial(Rested, held_by=str(held)), workers=workers, **LONG))
    wait_until(lambda: any(worker["last_step"] >= 10 for worker in job.workers()))
    return job


def ends_well(job: pl.Job, digest: str) -> None:
    result = job.result(timeout=120)
    assert result.digest == digest
    assert result.ledger == [{"epoch": epoch, "expected": 1437, "committed": 1437, "twice": 0} for epoch in range(3)]


def test_a_killed_worker_costs_neither_the_digest_nor_a_sample(
    cluster: pl.Client, long_reference: str, held: Path
) -> None:
    job = training(cluster, 2, held)
    os.kill(job.workers()[1]["pid"], signal.SIGKILL)
    held.unlink()
    ends_well(job, long_reference)
    assert job.info()["attempt"] == 1
    lost = [event for event in job.events() if event.kind == "worker_lost"]
    assert len(lost) == 1
    assert "signal 9" in lost[0].data["reason"]


@pytest.mark.parametrize("workers", [5, 1])
def test_a_killed_agent_takes_its_workers_and_the_job_goes_on(
    cluster: pl.Client, long_reference: str, held: Path, workers: int
) -> None:
    """From the last checkpoint where there was one worker; where some are on the other node, they go on at once."""
    job = training(cluster, workers, held)
    agent = psutil.Process(job.workers()[0]["pid"]).parent().parent()
    assert "paceline.engine.agent" in " ".join(agent.cmdline())
    pids = [child.pid for child in agent.children(recursive=True)]
    agent.kill()
    held.unlink()
    ends_well(job, long_reference)
    assert job.info()["attempt"] == (2 if workers == 1 else 1)
    if workers == 1:
        assert steps_of_the_last_attempt(job)[0] > 5
    wait_until(lambda: all(map(ended, pids)))


def test_a_cancelled_job_leaves_no_worker(cluster: pl.Client) -> None:
    job = cluster.submit(spec(Rested, workers=2, stop=pl.MaxEpochs(10_000)))
    wait_until(lambda: job.state == "RUNNING")
    pids = [worker["pid"] for worker in job.workers()]
    job.cancel()
    with pytest.raises(pl.JobCancelled):
        job.result(timeout=60)
    wait_until(lambda: all(map(ended, pids)))
    wait_until(lambda: job.workers() == [])


def test_nodes_tell_their_speed(cluster: pl.Client) -> None:
    wait_until(lambda: all(node.speed for node in cluster.nodes()))
    for node in cluster.nodes():
        assert [known.device for known in node.speed] == ["cpu", *(f"{d.kind}:{d.index}" for d in node.devices)]
        assert all(1e8 < known.flop_per_s < 1e15 for known in node.speed)


def test_links_between_nodes_are_measured_on_demand(cluster: pl.Client) -> None:
    [link] = cluster.links(measure=True)
    assert link.ends == tuple(sorted(node.id for node in cluster.nodes()))
    assert link.failure is None
    assert link.bytes_per_s > 1e7
    assert cluster.links() == [link]
