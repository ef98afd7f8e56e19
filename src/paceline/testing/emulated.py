"""A whole cluster on this machine: a master, and emulated hosts that have joined it."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from paceline.client.client import Client
from paceline.client.embedded import EmbeddedMaster, start_master
from paceline.engine.local import end_agent, spawn_agent
from paceline.engine.protocol import AgentArgs
from paceline.settings import MasterSettings
from paceline.testing.certificate import make_certificate
from paceline.testing.hosts import EmulatedHosts, HostSpec
from paceline.testing.relay import Relay

JOINED_WITHIN_S = 90.0  # a host of a tenth of a core imports the agent's modules for a while


@dataclass(frozen=True)
class PublicMaster:
    """A master with TLS. client: of it, here. node_token, ca: what a node joins with."""

    client: Client
    node_token: str
    ca: Path


@contextlib.contextmanager
def public_master(address: str, folder: Path, within: Sequence[str] = (), **settings: Any) -> Iterator[PublicMaster]:
    """A master that listens on the address, with a certificate for it, started `within` (see start_master)."""
    certificate = make_certificate(address, folder)
    process, ready = start_master(
        MasterSettings(
            folder=folder, host=address, port=0, tls_cert=certificate.cert, tls_key=certificate.key,
            tls_ca=certificate.cert, parent_pipe=True, log_level="warning", **settings,
        ),
        within,
    )  # fmt: skip
    master = EmbeddedMaster(process, ready["url"], ready["token"], None)
    try:
        with Client(ready["url"], ready["token"], ca=str(certificate.cert)) as client:
            yield PublicMaster(client, ready["node_token"], certificate.cert)
    finally:
        master.close()


class EmulatedCluster(EmulatedHosts):
    """Hosts, each with an agent that has joined the master, which runs on this machine itself; a context manager.

    The hosts' names are their nodes'. The master's own node is there too, with one core and no limits: keep it out
    with `Resources(nodes=cluster.names)`. relays: those that hosts with `relayed` have between them and the master.
    """

    client: Client

    def __init__(self, specs: Sequence[HostSpec]) -> None:
        super().__init__(specs)
        self.names = [spec.name for spec in specs]
        self.relays: dict[str, Relay] = {}
        self._agents: dict[str, subprocess.Popen[bytes]] = {}
        self._joined = ExitStack()

    def __enter__(self) -> EmulatedCluster:
        super().__enter__()
        with ExitStack() as stack:
            stack.push(super().__exit__)
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paceline-emulated-")))
            (self._folder / "master").mkdir()
            self._master = stack.enter_context(public_master(self.address, self._folder / "master", cores=1))
            self.client = self._master.client
            url = urlsplit(self.client.url)
            for spec in self._specs:
                if spec.relayed:
                    relay = Relay((str(url.hostname), url.port or 0), self.address)
                    self.relays[spec.name] = stack.enter_context(relay)
            stack.callback(self._end_agents)
            for name in self.names:
                self.start_agent(name)
            self.wait_for(*self.names)
            self._joined = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._joined.close()

    def start_agent(self, name: str) -> None:
        """Start the host's agent; a host whose agent was killed comes back with this."""
        relay, folder = self.relays.get(name), self._folder / name
        folder.mkdir(exist_ok=True)
        self._agents[name] = spawn_agent(
            AgentArgs(
                master_url=f"https://{relay.host}:{relay.port}" if relay else self.client.url,
                token=self._master.node_token,
                folder=folder,
                name=name,
                cores=self.hosts[name].spec.cores,
                ca=self._master.ca,
                log_level="warning",
            ),
            self.hosts[name].within,
        )

    def kill_agent(self, name: str) -> None:
        """As when the host loses its power: its workers end with it."""
        self._agents[name].kill()
        self._agents[name].wait()

    def wait_for(self, *names: str) -> None:
        """Return once the master lists these nodes. Raises TimeoutError."""
        wait_until(lambda: set(names) <= {node.name for node in self.client.nodes()}, f"{names} are nodes")

    def _end_agents(self) -> None:
        for process in self._agents.values():
            end_agent(process)


def wait_until(holds: Callable[[], bool], what: str, within_s: float = JOINED_WITHIN_S) -> None:
    """Poll until it holds. Raises TimeoutError."""
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:.0f} s: {what}")
        time.sleep(0.05)
