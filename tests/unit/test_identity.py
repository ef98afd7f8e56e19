"""Who an agent is: itself again after its death, and never somebody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.engine import identity
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
