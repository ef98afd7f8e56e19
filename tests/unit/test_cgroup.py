"""What a container may use, as its control groups tell it, in both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.engine import cgroup, facts

GIB = 2**30


class Machine:
    """A /proc and a /sys/fs/cgroup of the test's own."""

    def __init__(self, root: Path) -> None:
        self.proc, self.groups = root / "proc", root / "cgroup"

    def process(self, groups: str, mounts: str) -> None:
        self.write(self.proc / "self" / "cgroup", groups)
        self.write(self.proc / "self" / "mounts", mounts.replace("/sys/fs/cgroup", str(self.groups)))

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(cgroup, "PROC", made.proc)
    return made


def test_without_control_groups_there_is_no_limit(machine: Machine) -> None:
    assert (cgroup.cores(), cgroup.memory()) == (None, None)


def test_of_version_2_the_tightest_group_above_counts(machine: Machine) -> None:
    machine.process("0::/pod/container", "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0")
    machine.write(machine.groups / "pod" / "cpu.max", "150000 100000")
    machine.write(machine.groups / "pod" / "container" / "cpu.max", "max 100000")
    machine.write(machine.groups / "pod" / "memory.max", "max")
    machine.write(machine.groups / "pod" / "container" / "memory.max", str(2 * GIB))
    machine.write(machine.groups / "pod" / "container" / "memory.current", str(GIB))
    machine.write(machine.groups / "pod" / "container" / "memory.stat", f"anon 5\ninactive_file {GIB // 2}")
    assert cgroup.cores() == 1.5
    assert cgroup.memory() == (2 * GIB, GIB + GIB // 2)


def test_of_version_1_each_controller_has_its_own_group(machine: Machine) -> None:
    machine.process(
        "4:memory:/job\n1:cpu,cpuacct:/job",
        "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu,cpuacct 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0",
    )
    machine.write(machine.groups / "cpu" / "job" / "cpu.cfs_quota_us", "2500")
    machine.write(machine.groups / "cpu" / "job" / "cpu.cfs_period_us", "10000")
    machine.write(machine.groups / "memory" / "job" / "memory.limit_in_bytes", str(GIB))
    machine.write(machine.groups / "memory" / "job" / "memory.usage_in_bytes", str(GIB // 4))
    machine.write(machine.groups / "memory" / "memory.limit_in_bytes", str(2**63 - 4096))
    machine.write(machine.groups / "memory" / "memory.usage_in_bytes", str(9 * GIB))
    assert cgroup.cores() == 0.25
    assert cgroup.memory() == (GIB, GIB - GIB // 4)
    assert facts.cores() == 1
    assert facts.memory() == GIB
    assert facts.available_memory() <= GIB - GIB // 4


def test_a_container_that_sees_its_group_as_the_root_finds_its_limits_there(machine: Machine) -> None:
    machine.process("0::/system.slice/docker-abc.scope", "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0")
    machine.write(machine.groups / "cpu.max", "200000 100000")
    assert cgroup.cores() == 2.0
