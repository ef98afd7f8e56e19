"""`paceline doctor`: what this machine is fit for, and whether the known master answers."""

from __future__ import annotations

import getpass
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import typer

from paceline import versions
from paceline.cli.common import Json, data_folder, missing_node_parts
from paceline.cli.output import gib, rows, show
from paceline.errors import MasterUnreachable, PacelineError
from paceline.explain import counted

SCARCE_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Finding:
    """level: "ok", "note" for what only matters to some, "broken" for what is needed and isn't there."""

    name: str
    level: Literal["ok", "note", "broken"]
    fact: str
    remedy: str = ""
    exit_code: int = PacelineError.exit_code


def doctor(json: Json = False) -> None:
    """Check this machine and the known master. Fails only where something needed is broken."""
    found = [*_software(), *_node(), _disk(data_folder()), _master()]
    broken = [finding for finding in found if finding.level == "broken"]
    document = {"ok": not broken, "findings": [asdict(finding) for finding in found]}
    lines = [(f.level, f.name, f"{f.fact} {f.remedy}".strip()) for f in found]
    show(json, document, rows(("", "what", "found"), lines))
    if broken:
        raise typer.Exit(broken[0].exit_code)


def _software() -> Iterator[Finding]:
    here = versions.here()
    yield Finding("paceline", "ok", here.paceline)
    yield Finding("python", "ok", f"{platform.python_version()} in {sys.prefix}")
    if here.torch:
        yield Finding("torch", "ok", here.torch)
    else:
        yield Finding("torch", "note", "not installed.", "Training from here needs it: pip install torch.")
    missing = missing_node_parts()
    if missing:
        remedy = "To be a node or a master: pip install 'paceline[node]'."
        yield Finding("node", "note", f"a light client: {', '.join(missing)} not installed.", remedy)
    else:
        yield Finding("node", "ok", "all that a node and a master need is installed")
    ray = _version("ray")
    yield Finding("ray", "ok" if ray else "note", ray or "not installed; only `paceline up --engine ray` needs it")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _node() -> Iterator[Finding]:
    """What this machine would offer as a node."""
    if missing_node_parts():
        return
    from paceline.engine import facts

    yield Finding("cores", "ok", str(facts.cores()))
    yield Finding("memory", "ok", f"{gib(facts.available_memory())} of {gib(facts.memory())} available")
    yield _accelerators()
    if sys.platform == "linux":
        yield Finding("warm workers", "ok", "yes: forked from a process that has torch imported")
    else:
        yield Finding("warm workers", "note", f"forking with torch imported is not safe on {platform.system()}.")
    yield Finding(
        "isolation",
        "note",
        f"none: workers run as this Unix user ({getpass.getuser()}), and their code may do what you may.",
        "Take jobs only from people you trust with this account.",
    )


def _accelerators() -> Finding:
    from paceline.engine import facts

    devices = facts.devices()
    named = ", ".join(f"{d.kind}:{d.index} {d.name} {gib(d.memory) if d.memory else ''}".strip() for d in devices)
    if any(device.kind == "cuda" for device in devices) and (_version("torch") or "").endswith("+cpu"):
        remedy = "Install a CUDA build of torch to use them."
        return Finding("devices", "note", f"{named}; but this torch is built for CPUs only.", remedy)
    return Finding("devices", "ok", named or "no GPU: training runs on the cores")


def _disk(folder: Path) -> Finding:
    """Room and rights where masters and nodes of this user keep their state."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(nearest, os.W_OK):
        return Finding("disk", "broken", f"{nearest} can't be written.", "Give --folder, or change its permissions.")
    free = shutil.disk_usage(nearest).free
    if free < SCARCE_BYTES:
        return Finding("disk", "note", f"only {gib(free)} free for {folder}.", "Free some space, or give --folder.")
    return Finding("disk", "ok", f"{gib(free)} free for {folder}")


def _master() -> Finding:
    """Whether the master of `paceline login` answers, takes the token, and fits this machine's versions."""
    from paceline.client import login
    from paceline.client.client import Client
    from paceline.spec import Versions

    try:
        known = login.load()
    except MasterUnreachable as none:
        return Finding("master", "note", none.fact, "Start one with `paceline up`, or run `paceline login URL`.")
    try:
        with Client(known.url, known.token, ca=known.ca) as client:
            theirs, nodes = Versions.model_validate(client.get("/version")), client.nodes()
        versions.check(versions.here(), theirs, "this machine")
    except PacelineError as error:
        return Finding("master", "broken", error.fact, error.remedy, error.exit_code)
    return Finding("master", "ok", f"{known.url} answers: Paceline {theirs.paceline}, {counted(len(nodes), 'node')}")
