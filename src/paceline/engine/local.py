"""The local engine: agents in this machine's own process tree. Starts in well under a second and needs no server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field

from paceline.engine.protocol import AgentArgs


@dataclass
class LocalEngine:
    """agents: how many nodes to emulate on this machine; one, with all its cores, is the ordinary case.

    cores: that each agent says it has; None for what the machine has.
    """

    agents: int = 1
    cores: int | None = None
    name: str = "local"
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, args: AgentArgs) -> None:
        host = socket.gethostname()
        for number in range(self.agents):
            node = host if self.agents == 1 else f"{host}-{number}"
            own = args.model_copy(update={"name": node, "cores": self.cores})
            self._processes.append(spawn_agent(own))

    def close(self) -> None:
        for process in self._processes:
            end_agent(process)


def spawn_agent(args: AgentArgs) -> subprocess.Popen[bytes]:
    """Start an agent that ends when its stdin does, and so with this process at the latest.

    It does not get the engine's or the master's secrets from the environment: its workers run user code.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PACELINE_"))}
    process = subprocess.Popen([sys.executable, "-m", "paceline.engine.agent"], stdin=subprocess.PIPE, env=env)
    assert process.stdin is not None
    process.stdin.write(args.model_dump_json().encode() + b"\n")
    process.stdin.flush()
    return process


def end_agent(process: subprocess.Popen[bytes]) -> None:
    """Ask it to leave, and make it."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
