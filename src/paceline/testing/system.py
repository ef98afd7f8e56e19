"""What emulation needs of this machine, and how it calls the system's tools."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from itertools import count
from pathlib import Path

import psutil

TOOLS = ("ip", "tc", "nsenter", "openssl")
_PREFIX = re.compile(r"^(?:paceline-|pl)(\d+)-")
_count = count()


class EmulationUnavailable(Exception):
    """This machine can't emulate a cluster. `fact` says why, `remedy` what would help."""

    def __init__(self, fact: str, remedy: str) -> None:
        self.fact = fact
        self.remedy = remedy
        super().__init__(f"{fact} {remedy}")


def require_emulation() -> None:
    """Raises EmulationUnavailable where hosts can't be made: not Linux, not root, no tools, no namespaces."""
    if platform.system() != "Linux":
        raise EmulationUnavailable(f"Hosts are Linux network namespaces; this is {platform.system()}.", "Use Linux.")
    if os.geteuid() != 0:
        raise EmulationUnavailable(f"Making network namespaces needs root; this is user {os.geteuid()}.", "Use sudo.")
    missing = [name for name in TOOLS if shutil.which(name) is None]
    if missing:
        raise EmulationUnavailable(f"{', '.join(missing)} can't be found.", "Install iproute2, util-linux and openssl.")
    try:
        tool("ip", "netns", "add", name := f"{unique_name()}try")
        tool("ip", "netns", "del", name)
    except subprocess.CalledProcessError as error:
        raise EmulationUnavailable(
            f"This kernel or container gives no network namespaces: {error.stderr.strip()}.",
            "Run in a virtual machine or a privileged container.",
        ) from error


def tool(*command: str) -> str:
    """Run a tool; return what it printed. Raises CalledProcessError, whose notes hold what it said."""
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - our own arguments
    if done.returncode != 0:
        error = subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        error.add_note(done.stderr.strip())
        raise error
    return done.stdout


def unique_name() -> str:
    """A short name with this process's id, which no other run on this machine has."""
    return f"pl{os.getpid()}-{next(_count)}"


def left_behind(name: str) -> bool:
    """Whether the name is one of ours whose process is gone."""
    made_by = _PREFIX.match(name)
    return made_by is not None and not psutil.pid_exists(int(made_by[1]))


def mounts_of(kind: str) -> dict[str, Path]:
    """Where file systems of this kind are mounted, by each of their options."""
    rows = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return {option: Path(row[1]) for row in rows if row[2] == kind for option in row[3].split(",")}
