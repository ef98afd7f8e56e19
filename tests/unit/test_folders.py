"""Folders of one process, and files that nobody has used for long."""

from __future__ import annotations

import os
from pathlib import Path

from paceline.engine import folders


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_and_what_nobody_claimed_stays(
    tmp_path: Path,
) -> None:
    killed, living = folders.claim(tmp_path / "killed"), folders.claim(tmp_path / "living")
    (tmp_path / "unclaimed").mkdir()
    (tmp_path / "node.id").touch()
    killed.close()  # as the system does for a process that it killed
    folders.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["living", "node.id", "unclaimed"]
    living.close()


def test_files_that_were_not_used_for_long_go_and_who_has_one_open_keeps_it(tmp_path: Path) -> None:
    for name, used_at in (("old", 10.0), ("new", 30.0)):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (used_at, used_at))
    (tmp_path / "shards").mkdir()
    os.utime(tmp_path / "shards", (1.0, 1.0))
    with (tmp_path / "old").open() as held:
        folders.evict(tmp_path, before=20.0)
        assert held.read() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "shards"]
