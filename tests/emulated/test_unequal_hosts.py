"""What comes back from hosts of unequal speed, over links that are narrow, slow, silent or cut."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

import paceline as pl
from paceline.client.events import Event
from paceline.testing.emulated import EmulatedCluster

from helpers import wait_until
from workloads import Cnn, spec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
WITHIN_S = 200.0  # hosts of less than a core, on a machine that may be busy
LONG: dict[str, Any] = {
    "model": partial(Cnn, 16),
    "stop": pl.MaxEpochs(8),
    "batch_size": 48,
    "eval_every": 37,
    "keep": "best:val_loss",
    "optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "clip_grad_norm": 1.0,
}


@pytest.fixture(scope="module")
def reference(client: pl.Client) -> str:
    """The digest on one worker of an ordinary local master."""
    return client.submit(spec(workers=1, **LONG)).result(timeout=WITHIN_S).digest


def submit(cluster: EmulatedCluster, workers: int = 3, **changes: Any) -> pl.Job:
    resources = pl.Resources(workers=workers, nodes=tuple(cluster.names))
    return cluster.client.submit(spec(**{**LONG, "resources": resources, **changes}))


def ends_well(job: pl.Job, reference: str) -> None:
    result = job.result(timeout=WITHIN_S)
    assert result.digest == reference
    assert [row for row in result.ledger if row["committed"] != row["expected"] or row["twice"]] == []
    assert len(result.ledger) == 8


def first_lost(job: pl.Job) -> Event:
    """The loss of a worker, once the master has seen it; the job still runs."""
    wait_until(lambda: "worker_lost" in [event.kind for event in job.events_so_far()], WITHIN_S)
    return next(event for event in job.events_so_far() if event.kind == "worker_lost")


def wait_for_step(job: pl.Job, step: int) -> None:
    wait_until(lambda: any(worker["last_step"] >= step for worker in job.workers()), WITHIN_S)


def test_unequal_hosts_on_narrow_links_give_the_reference_digest(emulated: EmulatedCluster, reference: str) -> None:
    job = submit(emulated)
    ends_well(job, reference)
    assert {worker.node_name for worker in job.plan.workers} == {"a", "b", "c"}


def test_a_partitioned_host_is_named_and_the_others_end_the_job(whole: EmulatedCluster, reference: str) -> None:
    job = submit(whole)
    wait_for_step(job, 60)
    whole.partition("b")
    lost = first_lost(job).data
    assert lost["node"] == "b"
    assert "it has not been heard for more than 10 s" in lost["reason"]
    ends_well(job, reference)
    assert job.info()["attempt"] == 1


def test_a_host_that_vanishes_before_speeds_are_known_is_given_up_too(whole: EmulatedCluster, reference: str) -> None:
    job = submit(whole)
    wait_until(lambda: job.state == "RUNNING", WITHIN_S)
    whole.partition("a")  # rank 0: its store, its word on progress and its checkpoints go with it
    assert "rank 0 on a is lost" in first_lost(job).data["reason"]
    ends_well(job, reference)


def test_a_job_whose_only_host_is_cut_off_goes_on_on_another(whole: EmulatedCluster, reference: str) -> None:
    job = submit(whole, resources=pl.Resources(workers=1, nodes=("a", "b")))
    wait_for_step(job, 60)
    [worker] = job.plan.workers
    whole.partition(worker.node_name)
    ends_well(job, reference)
    assert {place.node_name for place in job.plan.workers} == {"a", "b"} - {worker.node_name}
    assert job.info()["attempt"] == 2


def test_a_host_comes_back_after_a_partition_and_trains_again(whole: EmulatedCluster, reference: str) -> None:
    whole.partition("b")
    wait_until(lambda: "b" not in [node.name for node in whole.client.nodes()], WITHIN_S)
    whole.heal("b")
    whole.wait_for("b")
    job = submit(whole, resources=pl.Resources(workers=1, nodes=("b",)))
    ends_well(job, reference)


def test_a_connection_that_goes_silent_is_noticed_and_survived(whole: EmulatedCluster, reference: str) -> None:
    job = submit(whole)
    wait_for_step(job, 60)
    whole.relays["c"].black_hole()  # its peers still reach it; the master does not
    assert first_lost(job).data["node"] == "c"
    ends_well(job, reference)


def test_a_slow_way_to_the_master_costs_nothing_but_time(whole: EmulatedCluster, reference: str) -> None:
    whole.relays["c"].delay_s, whole.relays["c"].mbit = 0.1, 2.0
    job = submit(whole)
    ends_well(job, reference)
    assert "worker_lost" not in [event.kind for event in job.events_so_far()]


def test_a_host_that_becomes_slow_is_named_and_gets_a_smaller_share(whole: EmulatedCluster, client: pl.Client) -> None:
    heavy = {**LONG, "model": partial(Cnn, 32), "batch_size": 1024, "drop_last": True, "stop": pl.MaxSteps(30)}
    job = submit(whole, **heavy)
    wait_for_step(job, 5)
    try:
        whole.set_cpu("a", 0.1)
        whole.set_bandwidth("a", 20)
        digest = job.result(timeout=WITHIN_S).digest
    finally:
        whole.set_cpu("a", 0.6)
        whole.set_bandwidth("a", 200)
    shares = {worker.node_name: worker.share[1] - worker.share[0] for worker in job.plan.workers}
    assert shares["a"] < shares["b"]
    [named] = [event.data for event in job.events_so_far() if event.kind == "straggler" and event.data["node"] == "a"]
    assert named["cell_s"] > 1.5 * named["others_cell_s"]
    assert "on a takes" in named["reason"]
    assert digest == client.submit(spec(**heavy, workers=1)).result(timeout=WITHIN_S).digest


def test_a_killed_agent_takes_its_host_out_until_it_is_started_again(whole: EmulatedCluster, reference: str) -> None:
    job = submit(whole)
    wait_for_step(job, 60)
    whole.kill_agent("b")
    assert first_lost(job).data["node"] == "b"
    whole.start_agent("b")
    ends_well(job, reference)
