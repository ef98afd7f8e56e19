"""An embedded master: a child process on this machine, which ends with this one."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paceline.errors import PacelineError, from_json
from paceline.settings import MasterSettings


@dataclass
class EmbeddedMaster:
    """url, token: to reach it. folder: its state; a temporary one, removed at the end, where none was given."""

    process: subprocess.Popen[str]
    url: str
    token: str
    temporary: tempfile.TemporaryDirectory[str] | None

    def close(self) -> None:
        """End it, its agents and their workers."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.temporary is not None:
            self.temporary.cleanup()


def start_master(settings: MasterSettings, within: Sequence[str] = ()) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """Start a master as a child and wait until it serves. Raises its error where it can't.

    within: a command that runs the rest of its line in other surroundings, such as a network namespace.
    """
    # -P: a user's file in the working folder, say json.py, must not pass for a module of ours
    command = [*within, sys.executable, "-P", "-m", "paceline.master", settings.model_dump_json()]
    # in a group of its own: a Ctrl-C in the terminal is for the parent, which ends the master when it is ready to
    process = subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise PacelineError(f"the master ended with code {process.wait()} before it served.", "See its messages above.")
    ready: dict[str, str] = json.loads(line)
    if "error" in ready:
        process.wait()
        raise from_json(ready["error"])  # type: ignore[arg-type]
    return process, ready


def embed(folder: Path | None, agents: int = 1, cores: int | None = None, engine: str = "local") -> EmbeddedMaster:
    """A master for this process alone. agents, cores: nodes to emulate on this machine, and the cores of each."""
    temporary = tempfile.TemporaryDirectory(prefix="paceline-") if folder is None else None
    where = Path(temporary.name) if temporary else Path(folder or ".")
    settings = MasterSettings(
        folder=where, port=0, agents=agents, cores=cores, engine=engine, parent_pipe=True, log_level="warning"
    )
    process, ready = start_master(settings)
    return EmbeddedMaster(process, ready["url"], ready["token"], temporary)
