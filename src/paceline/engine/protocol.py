"""An engine puts one agent on each node; the agent then dials the master, on every engine in the same way.

Who calls: the master. When: `start` once, before jobs; `close` at its end. What it promises: after `start`, an agent
runs (or will soon) on each node the engine reaches, with the given arguments, and all of them end with `close` or with
the master's process. Which nodes there are, the agents' own hellos tell.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, NonNegativeFloat

from paceline.settings import LogLevel


class AgentArgs(BaseModel):
    """All that an agent is told, as one JSON line on its stdin: no secret is in its arguments or environment.

    token: of the role "node". folder: for caches and scratch files. blobs: the master's own, for agents beside it.
    name, cores: the machine's own where None. price: of the node's hour.
    """

    master_url: str
    token: str
    folder: Path
    name: str | None = None
    cores: int | None = None
    price: NonNegativeFloat = 0.0
    blobs: Path | None = None
    ca: Path | None = None
    log_level: LogLevel = "info"


class Engine(Protocol):
    def start(self, args: AgentArgs) -> None: ...

    def close(self) -> None: ...
