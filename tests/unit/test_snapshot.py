"""What of a project travels: what git would not ignore, the same bytes for the same files, and nothing outside."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import paceline as pl
from paceline.archive import pack_folder, unpack_folder
from paceline.client import snapshot as snapshots
from paceline.client.snapshot import project_files, snapshot
from paceline.digest import file_sha256

NAMES = ("a", "b.py", "data", "x.log")
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
patterns = st.sampled_from(
    [
        "*.log",
        "!x.log",
        "data",
        "data/",
        "/data",
        "a/",
        "!a/",
        "**/b.py",
        "a/**",
        "!a/b.py",
        "b.*",
        "# data",
        "",
        "/a/data/*",
    ]
)
gitignores = st.dictionaries(
    st.sampled_from(["", "a/", "data/"]), st.lists(patterns, min_size=1, max_size=4), max_size=3
)


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        if not any(parent.is_file() for parent in path.parents if parent != folder) and not path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return folder


def files_of(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.skipif(shutil.which("git") is None, reason="git, whose answer is the reference, is not installed")
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example({"x.log/a"}, {"": ["*.log", "!x.log"]})
@example({"a/x.log"}, {"": ["a/**", "!x.log"]})
@example({"data/x.log/b.py"}, {"": ["b.*"], "data/": ["!x.log"]})
@given(st.sets(paths, min_size=1, max_size=8), gitignores)
def test_the_files_that_travel_are_those_that_git_does_not_ignore(
    tmp_path: Path, names: set[str], ignored: dict[str, list[str]]
) -> None:
    project = tmp_path / "project"
    shutil.rmtree(project, ignore_errors=True)
    written(project, {name: name for name in sorted(names)})
    written(project, {f"{folder}.gitignore": "\n".join(lines) for folder, lines in ignored.items()})
    git = ["git", "-C", str(project)]
    subprocess.run([*git, "init", "-q"], check=True)
    told = subprocess.run(
        [*git, "ls-files", "-z", "--others", "--exclude-standard"], check=True, capture_output=True, text=True
    )
    assert {name for name in project_files(project) if (project / name).is_file()} == set(told.stdout.split("\0")) - {
        ""
    }


def test_a_project_inside_a_repository_follows_the_rules_above_it(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    written(
        tmp_path, {".gitignore": "*.ckpt\n", "sub/train.py": "", "sub/old.ckpt": "", "sub/__pycache__/train.pyc": ""}
    )
    assert set(project_files(tmp_path / "sub")) == {"train.py"}


def test_the_same_files_are_the_same_blob_and_come_back_with_their_modes_and_inner_links(tmp_path: Path) -> None:
    project = written(tmp_path / "project", {"train.py": "x", "bin/run.sh": "y", "data/deep/rows": "z"})
    (project / "bin" / "run.sh").chmod(0o755)
    (project / "link").symlink_to("data/deep")
    (project / "file_link").symlink_to(written(tmp_path / "elsewhere", {"big": "outside"}) / "big")
    (project / "folder_link").symlink_to(tmp_path / "elsewhere")
    os.link(project / "train.py", project / "twin.py")
    snapshot(project, tmp_path / "one.tar")
    os.utime(project / "train.py", (1, 1))
    snapshot(project, tmp_path / "two.tar")
    assert file_sha256(tmp_path / "one.tar") == file_sha256(tmp_path / "two.tar")
    unpack_folder(tmp_path / "one.tar", tmp_path / "back")
    back = {name: (tmp_path / "back" / name).read_text() for name in files_of(tmp_path / "back")}
    assert back == {
        "train.py": "x", "twin.py": "x", "bin/run.sh": "y", "data/deep/rows": "z", "file_link": "outside",
    }  # fmt: skip
    assert os.readlink(tmp_path / "back" / "link") == "data/deep"
    assert os.access(tmp_path / "back" / "bin" / "run.sh", os.X_OK)
    assert not (tmp_path / "back" / "folder_link").exists()


def test_a_project_that_is_too_large_is_refused_with_its_largest_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "MOST_BYTES", 10 * 2**20)
    project = written(tmp_path / "project", {"train.py": "x"})
    with (project / "weights.bin").open("wb") as file:
        file.truncate(11 * 2**20)
    with pytest.raises(
        pl.InvalidSpec, match=r"11 MiB in 2 files; 10 MiB may travel. The largest: weights.bin \(11 MiB\)"
    ):
        snapshot(project, tmp_path / "x.tar")


@pytest.mark.parametrize("name", ["../outside", "a/../../outside"])
def test_an_archive_that_leaves_its_folder_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    inner = tmp_path / "inner"
    with pytest.raises(pl.Corrupt):
        unpack_folder(tmp_path / "evil.tar", inner / "folder")
    assert files_of(tmp_path) == {"evil.tar"}


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        entry = tarfile.TarInfo("link")
        entry.type, entry.linkname = tarfile.SYMTYPE, "../../etc/passwd"
        tar.addfile(entry)
    with pytest.raises(pl.Corrupt):
        unpack_folder(tmp_path / "evil.tar", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_an_output_folder_is_packed_whole_whatever_git_ignores(tmp_path: Path) -> None:
    folder = written(tmp_path / "outputs", {".gitignore": "*", "model.pt": "m", "runs/a": "r"})
    pack_folder(folder, tmp_path / "out.tar")
    unpack_folder(tmp_path / "out.tar", tmp_path / "back")
    assert files_of(tmp_path / "back") == {".gitignore", "model.pt", "runs/a"}
