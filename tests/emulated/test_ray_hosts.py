"""The Ray engine over two raylets that have nothing in common but a network and a token."""

from __future__ import annotations

import secrets
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import paceline as pl
from paceline.testing.emulated import public_master
from paceline.testing.hosts import EmulatedHosts, Host, HostSpec
from paceline.testing.system import EmulationUnavailable

from helpers import wait_until
from workloads import spec

RAY = str(Path(sysconfig.get_path("scripts")) / "ray")
PORT = 6379

pytestmark = pytest.mark.ray


def start_raylet(host: Host, head: Host) -> None:
    role = ["--head", f"--port={PORT}"] if host is head else [f"--address={head.address}:{PORT}"]
    quiet = ["--disable-usage-stats", "--include-dashboard=false"] if host is head else ["--disable-usage-stats"]
    host.run(RAY, "start", f"--node-ip-address={host.address}", f"--num-cpus={host.spec.cores}", *role, *quiet)


@pytest.fixture
def ray_hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pl.Client]:
    """A client of a master on the head's host; Ray runs with token authentication."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short:
        monkeypatch.setenv("RAY_TMPDIR", short)  # the path of a raylet's socket has a bound
        try:
            with EmulatedHosts([HostSpec("head", cores=2, mbit=500), HostSpec("other", cores=2, mbit=100)]) as emulated:
                head = emulated.hosts["head"]
                for host in emulated.hosts.values():
                    start_raylet(host, head)
                address = f"{head.address}:{PORT}"
                with public_master(head.address, tmp_path, head.within, engine="ray", ray_address=address) as master:
                    wait_until(lambda: len(master.client.nodes()) == 2)
                    yield master.client
        except EmulationUnavailable as why:
            pytest.skip(str(why))


@pytest.mark.slow
def test_two_raylets_in_two_namespaces_train_to_the_reference_digest(ray_hosts: pl.Client, client: pl.Client) -> None:
    expected = client.submit(spec(workers=1)).result(timeout=120).digest
    result = ray_hosts.submit(spec(workers=4)).result(timeout=120)
    assert result.digest == expected
    assert len({worker.node_name for worker in result.plan.workers}) == 2
    assert len({node.address for node in ray_hosts.nodes()}) == 2
