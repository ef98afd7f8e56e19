"""Nodes and links as they are measured, on hosts and links of known speed."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from paceline.measured import Link
from paceline.testing.emulated import EmulatedCluster
from paceline.testing.hosts import HostSpec
from paceline.testing.system import EmulationUnavailable

from helpers import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hosts() -> Iterator[EmulatedCluster]:
    specs = (
        HostSpec("free"),
        HostSpec("other"),
        HostSpec("narrow", mbit=50),
        HostSpec("wide", mbit=200),
        HostSpec("quarter", cpu=0.25),
        HostSpec("walled"),
    )
    try:
        with EmulatedCluster(specs) as cluster:
            for host in cluster.hosts.values():  # to other hosts, but not to the master, it sends where nobody is
                nobody = ("lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud", "permanent")
                cluster.hosts["walled"].run("ip", "neigh", "replace", host.address, *nobody)
            yield cluster
    except EmulationUnavailable as why:
        pytest.skip(str(why))


@pytest.fixture(scope="module")
def speeds(hosts: EmulatedCluster) -> dict[str, float]:
    """FLOP/s of one core, of every node."""

    def told() -> dict[str, float]:
        return {node.name: node.speed[0].flop_per_s for node in hosts.client.nodes() if node.speed}

    wait_until(lambda: set(hosts.names) <= set(told()), within_s=120)
    return told()


def links_of(cluster: EmulatedCluster, *names: str) -> dict[tuple[str, str], Link]:
    """Measured links between these hosts."""
    return {link.ends: link for link in cluster.client.links(measure=names) if set(link.ends) <= set(names)}


def test_a_host_of_a_quarter_of_a_core_measures_about_a_quarter_of_the_speed(speeds: dict[str, float]) -> None:
    """Or less: a process that is stopped a hundred times a second finds its caches cold each time."""
    assert 0.12 < speeds["quarter"] / speeds["free"] < 0.3


def test_links_are_as_fast_as_they_were_made(hosts: EmulatedCluster, speeds: dict[str, float]) -> None:
    links = links_of(hosts, "free", "narrow", "other", "wide")
    mbit = {ends: link.bytes_per_s * 8 / 1e6 for ends, link in links.items()}
    narrow = [rate for ends, rate in mbit.items() if "narrow" in ends]
    assert narrow == pytest.approx([50] * len(narrow), rel=0.25)
    wide = [rate for ends, rate in mbit.items() if "wide" in ends and "narrow" not in ends]
    assert wide == pytest.approx([200] * len(wide), rel=0.25)
    assert mbit["free", "other"] > 1000
    assert links["free", "other"].latency_s < 0.005


def test_a_pair_that_is_not_connected_is_told_with_the_reason(hosts: EmulatedCluster, speeds: dict[str, float]) -> None:
    [link] = links_of(hosts, "free", "walled").values()
    assert link.failure is not None
    assert re.fullmatch(r"walled could not reach free: [\d.]+:\d+: no answer within 2 s", link.failure)
    assert "walled" in {node.name for node in hosts.client.nodes()}
