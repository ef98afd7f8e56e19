"""Emulated hosts themselves: what they share, what they do not, and that nothing of them stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from paceline.testing import system
from paceline.testing.hosts import EmulatedHosts, HostSpec, sweep_hosts
from paceline.testing.limits import Limits, sweep_limits
from paceline.testing.system import EmulationUnavailable, require_emulation, tool

from helpers import wait_until

LEFT_ALONE = """
import os, signal
from paceline.testing.hosts import EmulatedHosts, HostSpec
hosts = EmulatedHosts([HostSpec("a", cpu=0.5)])
hosts.__enter__()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    try:
        require_emulation()
        with Limits(cores=1.0):
            pass
    except EmulationUnavailable as why:
        pytest.skip(str(why))


def ours(pid: int) -> list[str]:
    """Everything of that process which this machine lists."""
    listed = tool("ip", "netns", "list").split() + tool("ip", "-oneline", "link").replace(":", " ").split()
    groups = [str(path) for path in Path("/sys/fs/cgroup").glob("*/paceline-*")]
    return [name for name in listed + groups if f"pl{pid}-" in name or f"paceline-{pid}-" in name]


def test_hosts_reach_each_other_unless_one_is_partitioned() -> None:
    reach = "import socket, sys; socket.create_connection((sys.argv[1], 7000), timeout=1)"
    serve = (
        "import socket; s = socket.create_server(('0.0.0.0', 7000)); print('up', flush=True); s.accept(); s.accept()"
    )
    with EmulatedHosts([HostSpec("a"), HostSpec("b", mbit=10)]) as emulated:
        a, b = emulated.hosts["a"], emulated.hosts["b"]
        serving = subprocess.Popen([*b.within, sys.executable, "-c", serve], stdout=subprocess.PIPE)
        assert serving.stdout is not None
        assert serving.stdout.readline() == b"up\n"
        a.run(sys.executable, "-c", reach, b.address)
        emulated.partition("b")
        with pytest.raises(subprocess.CalledProcessError, match="exit status 1"):
            a.run(sys.executable, "-c", reach, b.address)
        emulated.heal("b")
        a.run(sys.executable, "-c", reach, b.address)
        serving.wait(timeout=10)
        serving.stdout.close()


def test_links_have_the_bandwidth_that_was_asked_for() -> None:
    with EmulatedHosts([HostSpec("a", mbit=30)]) as emulated:
        host = emulated.hosts["a"]
        ends = [("tc", "qdisc", "show", "dev", host.link.outside), ("tc", "-n", host.namespace, "qdisc", "show")]
        assert all("rate 30Mbit" in tool(*end) for end in ends)
        emulated.set_bandwidth("a", 5)
        assert all("rate 5Mbit" in tool(*end) for end in ends)
        emulated.set_bandwidth("a", None)
        assert not any("rate" in tool(*end) for end in ends)


def test_a_host_gets_no_more_processor_time_and_memory_than_its_limits() -> None:
    spin = "import os, time\nend = time.monotonic() + 2\nwhile time.monotonic() < end: pass\nprint(sum(os.times()[:2]))"
    with EmulatedHosts([HostSpec("a", cpu=0.25, memory=200 * 2**20)]) as emulated:
        assert float(emulated.hosts["a"].run(sys.executable, "-c", spin)) < 0.75  # a quarter of 2, and some
        with pytest.raises(subprocess.CalledProcessError):
            emulated.hosts["a"].run(sys.executable, "-c", "bytearray(400 * 2**20)")


def test_nothing_stays_of_hosts_and_what_ran_there_even_after_an_error() -> None:
    asleep: list[subprocess.Popen[bytes]] = []
    with contextlib.suppress(ZeroDivisionError), EmulatedHosts([HostSpec("a", cpu=0.5), HostSpec("b")]) as emulated:
        asleep += [subprocess.Popen([*host.within, "sleep", "600"]) for host in emulated.hosts.values()]
        assert len(ours(os.getpid())) > 3
        raise ZeroDivisionError
    assert [process.wait(timeout=10) for process in asleep] == [-signal.SIGKILL] * 2
    assert ours(os.getpid()) == []


def test_what_a_killed_process_left_is_removed_by_the_next_run() -> None:
    killed = subprocess.Popen([sys.executable, "-c", LEFT_ALONE])
    assert killed.wait(timeout=30) == -signal.SIGKILL
    assert ours(killed.pid) != []
    sweep_hosts()
    sweep_limits()
    wait_until(lambda: not psutil.pid_exists(killed.pid))
    assert ours(killed.pid) == []


def test_two_runs_at_once_do_not_meet() -> None:
    with EmulatedHosts([HostSpec("a")]) as one, EmulatedHosts([HostSpec("a")]) as other:
        assert one.hosts["a"].address != other.hosts["a"].address
        assert one.hosts["a"].namespace != other.hosts["a"].namespace


def test_where_tools_are_missing_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system.shutil, "which", lambda name: None if name == "tc" else f"/bin/{name}")
    with pytest.raises(EmulationUnavailable, match="tc can't be found") as raised:
        require_emulation()
    assert raised.value.remedy == "Install iproute2, util-linux and openssl."
