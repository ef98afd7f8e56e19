"""The local engine: agents in this machine's own process tree. Starts in well under a second and needs no server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

import structlog

from paceline.engine.protocol import AgentArgs
from paceline.errors import Unauthorized, VersionMismatch

WATCH_EVERY_S = 1.0
REFUSED = (Unauthorized.exit_code, VersionMismatch.exit_code)

log = structlog.get_logger("engine")


class LocalEngine:
    """agents: how many nodes to emulate on this machine; one, with all its cores, is the ordinary case.

    cores: that each agent says it has; None for what the machine has. An agent that dies is started again.
    """

    def __init__(self, agents: int = 1, cores: int | None = None) -> None:
        host = socket.gethostname()
        self._names = [host] if agents == 1 else [f"{host}-{number}" for number in range(agents)]
        self._cores = cores
        self._agents: dict[str, subprocess.Popen[bytes]] = {}
        self._closing = threading.Event()
        self._watcher: threading.Thread | None = None

    def start(self, args: AgentArgs) -> None:
        self._cover(args)
        self._watcher = threading.Thread(target=self._watch, args=(args,), name="local-agents", daemon=True)
        self._watcher.start()

    def _watch(self, args: AgentArgs) -> None:
        while not self._closing.wait(WATCH_EVERY_S):
            try:
                self._cover(args)
            except OSError as error:  # no process, no memory: there may be some soon
                log.error("agent_not_started", error=str(error))

    def _cover(self, args: AgentArgs) -> None:
        """A living agent for each node, except one that the master refused."""
        for name in self._names:
            known = self._agents.get(name)
            if known is None or known.poll() not in (None, *REFUSED):
                self._agents[name] = spawn_agent(args.model_copy(update={"name": name, "cores": self._cores}))

    def close(self) -> None:
        self._closing.set()
        if self._watcher is not None:
            self._watcher.join()
        for process in self._agents.values():
            end_agent(process)


def spawn_agent(args: AgentArgs, within: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start an agent that ends when its stdin does, and so with this process at the latest.

    within: a command that runs the rest of its line in other surroundings: a namespace, a group with limits.

    It does not get the engine's or the master's secrets from the environment: its workers run user code.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PACELINE_"))}
    # -P: see client/embedded.py
    command = [*within, sys.executable, "-P", "-m", "paceline.engine.agent"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=env)  # noqa: S603
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
