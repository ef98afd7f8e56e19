"""The engines under contract: each with two nodes of four places."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import paceline as pl

from helpers import running_master, wait_until


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pl.Client]:
    """Two raylets on this machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=4, include_dashboard=False)
        cluster.add_node(num_cpus=4)
        folder: Path = tmp_path_factory.mktemp("ray")
        with running_master(folder, engine="ray", ray_address=cluster.address) as client:
            wait_until(lambda: len(client.nodes()) == 2)
            yield client
    finally:
        cluster.shutdown()


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def cluster(request: pytest.FixtureRequest) -> pl.Client:
    """A client of a master with two nodes, on each engine in turn."""
    found: pl.Client = request.getfixturevalue(f"{request.param}_cluster")
    wait_until(lambda: len(found.nodes()) == 2)  # the test before may have killed an agent
    return found
