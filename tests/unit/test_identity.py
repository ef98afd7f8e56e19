"""Who an agent is: itself again after its death, and never somebody else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paceline.engine import facts, identity
from paceline.engine.identity import Identity


def test_an_agent_that_comes_back_is_known_again(tmp_path: Path) -> None:
    with Identity(tmp_path, "n0") as first:
        known = first.text
    with Identity(tmp_path, "n0") as second:
        assert second.text == known


def test_two_agents_of_one_name_that_live_at_once_are_told_apart(tmp_path: Path) -> None:
    with Identity(tmp_path, "n0") as first, Identity(tmp_path, "n0") as second:
        assert first.text != second.text
    with Identity(tmp_path, "n0") as third:
        assert third.text == first.text


def test_other_names_folders_and_machines_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Identity(tmp_path, "n0") as agent:
        known = agent.text
    (tmp_path / "other").mkdir()
    with Identity(tmp_path, "n1") as named, Identity(tmp_path / "other", "n0") as elsewhere:
        assert len({known, named.text, elsewhere.text}) == 3
    (tmp_path / "boot").write_text("another machine")
    monkeypatch.setattr(identity, "BOOT_ID", tmp_path / "boot")
    with Identity(tmp_path, "n0") as copied:
        assert copied.text != known


LISTED = "0, GPU-aa, NVIDIA A100, 81920\n1, GPU-bb, NVIDIA A100, [N/A]\n2, GPU-cc, NVIDIA A100, 81920\n"


@pytest.mark.parametrize(
    ("visible", "found"),
    [(None, [0, 1, 2]), ("0,2", [0, 2]), ("GPU-bb", [1]), ("", []), ("1,GPU-cc", [1, 2])],
)
def test_a_node_has_the_gpus_that_its_agent_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, found: list[int]
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{LISTED}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    facts.devices.cache_clear()
    try:
        devices = facts.devices()
    finally:
        facts.devices.cache_clear()
    assert [device.index for device in devices] == found
    assert all(device.memory == (0 if device.index == 1 else 80 * 2**30) for device in devices)
