"""What this process may use of its machine: a container has less than its machine tells, by its control groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
NO_LIMIT = 2**60  # version 1 writes its largest number instead of "max"


def cores() -> float | None:
    """Cores' worth of processor time, by the tightest quota of the group and those above it; None without one."""
    quotas = [_quota(folder) for folder in _folders("cpu")]
    return min((quota for quota in quotas if quota is not None), default=None)


def memory() -> tuple[int, int] | None:
    """(limit, what is left of it) in bytes, of the group with the least left; None without a limit."""
    limits = [_memory(folder) for folder in _folders("memory")]
    return min((limit for limit in limits if limit is not None), key=lambda limit: limit[1], default=None)


def _folders(controller: str) -> Iterator[Path]:
    """This process's group and those above it, as far as they can be seen from here, of both versions."""
    mounts = _mounts()
    for line in _lines(PROC / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        mount = mounts.get(controller if controllers else "")
        if mount is None or (controllers and controller not in controllers.split(",")):
            continue
        own = mount / path.lstrip("/")
        if not own.exists():  # a container sees its own group as the root, by another path than its own
            own = mount
        yield from [own, *(parent for parent in own.parents if parent.is_relative_to(mount))]


def _mounts() -> dict[str, Path]:
    """Where each controller of version 1 is mounted, and version 2 as ""."""
    rows = [line.split() for line in _lines(PROC / "self" / "mounts")]
    found = {option: Path(row[1]) for row in rows if row[2] == "cgroup" for option in row[3].split(",")}
    found.update(("", Path(row[1])) for row in rows if row[2] == "cgroup2")
    return found


def _quota(folder: Path) -> float | None:
    found = [word for line in _lines(folder / "cpu.max") for word in line.split()]
    found = found or [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")]
    if len(found) != 2 or found[0] in ("max", "-1"):
        return None
    return int(found[0]) / int(found[1])


def _memory(folder: Path) -> tuple[int, int] | None:
    limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
    used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
    if limit is None or used is None or limit >= NO_LIMIT:
        return None
    kept = dict(line.split() for line in _lines(folder / "memory.stat"))
    cached = int(kept.get("total_inactive_file") or kept.get("inactive_file") or 0)  # given back when it is needed
    return limit, max(0, limit - used + cached)


def _number(path: Path) -> int | None:
    found = _lines(path)
    return int(found[0]) if found and found[0].isdigit() else None


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []
