"""Emulated hosts: network namespaces on one bridge, each with its own link and limits."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from paceline.testing.limits import Limits
from paceline.testing.links import Bridge, Link, free_subnet
from paceline.testing.system import left_behind, require_emulation, tool, unique_name

NAMESPACES = Path("/run/netns")


@dataclass(frozen=True)
class HostSpec:
    """cores: that its agent offers. cpu: cores' worth of time; memory: bytes; mbit: of its link, each way.

    None: no limit. relayed: its agent and workers reach the master through a `Relay`.
    """

    name: str
    cores: int = 1
    cpu: float | None = None
    memory: int | None = None
    mbit: float | None = None
    relayed: bool = False


@dataclass(frozen=True)
class Host:
    """A running host. namespace: as `ip netns` lists it. limits: None where the spec has none."""

    spec: HostSpec
    namespace: str
    address: str
    link: Link
    limits: Limits | None

    @property
    def within(self) -> list[str]:
        """The start of a command line; what follows runs on this host, and its process is the command's own."""
        # `ip netns exec` would hide /sys, and with it the limits, from the agent that asks what it may use
        return [*(self.limits.within if self.limits else []), "nsenter", f"--net={NAMESPACES / self.namespace}"]

    def run(self, *command: str) -> str:
        """Run a command on this host; return what it printed. Raises CalledProcessError."""
        return tool(*self.within, *command)


class EmulatedHosts:
    """A context manager: hosts by name, which share this machine's files and nothing else. All goes at its end.

    The machine itself is on their network at `address`. Raises EmulationUnavailable.
    """

    def __init__(self, specs: Sequence[HostSpec]) -> None:
        self._specs = specs
        self._stack = ExitStack()
        self.hosts: dict[str, Host] = {}
        self.address = ""

    def __enter__(self) -> EmulatedHosts:
        require_emulation()
        sweep_hosts()
        with ExitStack() as stack:
            bridge = stack.enter_context(_bridge(unique_name()))
            self.address = bridge.address
            for number, spec in enumerate(self._specs):
                self.hosts[spec.name] = stack.enter_context(_host(bridge, number, spec))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def partition(self, name: str) -> None:
        """Pull the host's cable: nothing arrives any more, either way, and nothing says so."""
        self.hosts[name].link.set_up(False)

    def heal(self, name: str) -> None:
        self.hosts[name].link.set_up(True)

    def set_bandwidth(self, name: str, mbit: float | None) -> None:
        self.hosts[name].link.shape(mbit)

    def set_cpu(self, name: str, cores: float | None) -> None:
        """Change the limit of a host that was made with one."""
        limits = self.hosts[name].limits
        if limits is None:
            raise ValueError(f"host {name!r} was made without limits; give it a cpu= or memory=.")
        limits.set_cores(cores)


@contextlib.contextmanager
def _bridge(name: str) -> Iterator[Bridge]:
    bridge = Bridge(name, free_subnet())
    bridge.create()
    try:
        yield bridge
    finally:
        bridge.remove()


@contextlib.contextmanager
def _host(bridge: Bridge, number: int, spec: HostSpec) -> Iterator[Host]:
    name = f"{bridge.name}h{number}"
    with ExitStack() as stack:
        limited = spec.cpu is not None or spec.memory is not None
        limits = stack.enter_context(Limits(spec.cpu, spec.memory)) if limited else None
        tool("ip", "netns", "add", name)
        stack.callback(_remove, name)
        link = Link(bridge, name, name, bridge.host_address(number))
        link.create()
        link.shape(spec.mbit)
        yield Host(spec, name, link.address, link, limits)


def _remove(namespace: str) -> None:
    """End what runs there. The link would go with the namespace, but only some time later."""
    for pid in tool("ip", "netns", "pids", namespace).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    with contextlib.suppress(subprocess.CalledProcessError):  # it has no link yet where making that failed
        tool("ip", "link", "del", namespace)
    tool("ip", "netns", "del", namespace)


def sweep_hosts() -> None:
    """Remove what processes that are gone, killed before they could, have left."""
    for line in tool("ip", "netns", "list").splitlines():
        if left_behind(namespace := line.split()[0]):
            _remove(namespace)
    for line in tool("ip", "-oneline", "link", "show", "type", "bridge").splitlines():
        if left_behind(name := line.split(": ")[1]):
            tool("ip", "link", "del", name)
