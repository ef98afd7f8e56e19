"""A node's folder in memory for copies of shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.engine import copies


def test_what_a_killed_agent_left_goes_when_the_next_one_comes_and_what_a_living_one_keeps_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "MEMORY", tmp_path)
    killed, living = copies.Folder(), copies.Folder()
    for folder in (killed, living):
        folder.of_job("job").mkdir()
    killed._lock.close()  # as the system does for a process that it killed
    copies.Folder()
    assert not killed.of_job("job").exists()
    assert living.of_job("job").exists()
    assert living.room > 0
    living.clear()
    assert not living.of_job("job").exists()
    copies.Folder()
    assert living.of_job("job").parent.exists()


def test_a_system_without_such_a_file_system_has_no_room_for_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "MEMORY", tmp_path / "none")
    assert copies.Folder().room == 0
