"""What an agent knows of its node, without torch."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import structlog

from paceline.engine import cgroup
from paceline.plan import Device

CPU_FIELDS = ("model name", "flags", "Features", "CPU part", "cache size")

log = structlog.get_logger("agent")


def hardware_class() -> str:
    """Nodes with the same text compute the same bits: CPU model, instruction set and caches, GPUs, torch build."""
    accelerators = "+".join(sorted({device.name for device in devices()}))
    return "/".join(filter(None, (_cpu(), accelerators, f"torch-{metadata.version('torch')}")))


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return f"{platform.machine()}-{platform.processor()}"
    first = cpuinfo.read_text().split("\n\n")[0]
    fields = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    found = {key.strip(): value.strip() for key, value in fields.items() if key.strip() in CPU_FIELDS}
    short = hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:8]
    return f"{found.get('model name', platform.machine())}-{short}".replace(" ", "-")


@functools.cache
def devices() -> tuple[Device, ...]:
    """The accelerators, as the driver's own tool lists them."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return (Device(kind="mps", name="Apple"),)
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20)  # noqa: S603 - fixed arguments
    except subprocess.TimeoutExpired:
        log.warning("no_devices", reason="nvidia-smi does not answer: the driver hangs")
        return ()
    rows = [line.split(", ") for line in listed.stdout.splitlines()] if listed.returncode == 0 else []
    return tuple(
        Device(
            kind="cuda", index=int(index), name=name.replace(" ", "-"), memory=int(mib) * 2**20 if mib.isdigit() else 0
        )
        for index, uuid, name, mib in rows
        if _is_visible(index, uuid)
    )


def _is_visible(index: str, uuid: str) -> bool:
    """Whether this process may use the GPU: a batch system, or Ray, may have given it some of the machine's only."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return listed is None or any(name == index or (name and uuid.startswith(name)) for name in listed.split(","))


def address_towards(master_url: str) -> str:
    """This machine's address on the interface by which it reaches the master."""
    parts = urlsplit(master_url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((parts.hostname or "127.0.0.1", parts.port or 443))  # sends nothing
        return str(probe.getsockname()[0])


def cores() -> int:
    """Cores that this process may run on, and has the time of; of less than one, one."""
    mine = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count() or 1
    quota = cgroup.cores()
    return mine if quota is None else max(1, min(mine, int(quota)))


def memory() -> int:
    """Bytes: the machine's, or this container's."""
    total, limit = int(psutil.virtual_memory().total), cgroup.memory()
    return total if limit is None else min(total, limit[0])


def available_memory() -> int:
    """Bytes that new processes could use."""
    available, limit = int(psutil.virtual_memory().available), cgroup.memory()
    return available if limit is None else min(available, limit[1])
