"""The same faults where Ray carries the agents: two raylets on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest

import paceline as pl
from paceline.testing.faults import Fault, FaultPlan

from helpers import running_master, wait_until
from points import job_of
from workloads import Rested

pytestmark = [pytest.mark.ray, pytest.mark.slow]
EndsWell = Callable[[pl.Job], pl.Result]
Inflict = Callable[[FaultPlan, pl.Job], list[Fault]]


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pl.Client]:
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=4, include_dashboard=False)
        cluster.add_node(num_cpus=4)
        folder = tmp_path_factory.mktemp("ray")
        with running_master(folder, engine="ray", ray_address=cluster.address) as client:
            wait_until(lambda: len(client.nodes()) == 2)
            yield client
    finally:
        cluster.shutdown()


@pytest.mark.parametrize("seed", range(200, 208))
def test_workers_killed_joined_and_drained_at_random_on_two_nodes(
    on_ray: pl.Client, ends_well: EndsWell, inflict: Inflict, seed: int
) -> None:
    print(f"seed={seed}")
    job = on_ray.submit(job_of(5, model=partial(Rested, rest_s=0.008), checkpoint_every=10))
    wait_until(lambda: job.state == "RUNNING")
    assert inflict(FaultPlan.random(seed, count=5, mean_s=0.3, kinds=("kill", "kill", "scale"), most_workers=6), job)
    ends_well(job)


@pytest.mark.parametrize("kind", ["kill_agent", "kill_fork_server"])
def test_a_node_whose_agent_or_fork_server_is_killed_trains_again(
    on_ray: pl.Client, ends_well: EndsWell, inflict: Inflict, kind: str
) -> None:
    job = on_ray.submit(job_of(5, checkpoint_every=10))
    plan: FaultPlan = getattr(FaultPlan(), kind)(rank=0, at_step=20)
    assert inflict(plan, job)
    ends_well(job)
    wait_until(lambda: len(on_ray.nodes()) == 2)
