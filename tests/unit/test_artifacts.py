"""Blobs on the master's disk: whole, or not there."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import paceline as pl
from paceline.master.artifacts import Blobs

CONTENT = bytes(range(256)) * 40
NAME = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def send(blobs: Blobs, content: bytes, chunk: int, name: str | None = None) -> None:
    """Upload as a client does: go on from wherever the master says it is."""
    name, offset, complete = name or hashlib.sha256(content).hexdigest(), 0, False
    while not complete:
        offset, complete = blobs.append(name, offset, len(content), content[offset : offset + chunk])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), chunk=st.integers(1, 100))
def test_any_content_in_any_chunks_arrives_as_it_was(blobs: Blobs, content: bytes, chunk: int) -> None:
    send(blobs, content, chunk)
    assert blobs.path(hashlib.sha256(content).hexdigest()).read_bytes() == content


def test_a_torn_upload_resumes_where_it_broke_also_after_a_restart(blobs: Blobs, tmp_path: Path) -> None:
    assert blobs.append(NAME, 0, len(CONTENT), CONTENT[:3000]) == (3000, False)
    assert blobs.missing([NAME]) == [NAME]
    with pytest.raises(pl.NotFound):
        blobs.path(NAME)
    again = Blobs(tmp_path)
    assert again.append(NAME, 0, len(CONTENT), CONTENT[:5000]) == (3000, False)  # tells where to go on
    assert again.append(NAME, 3000, len(CONTENT), CONTENT[3000:]) == (len(CONTENT), True)
    assert again.path(NAME).read_bytes() == CONTENT
    assert again.missing([NAME]) == []
    assert files(tmp_path) == [NAME]


@pytest.mark.parametrize("offset", [1, 2999, 3001, 10**9])
def test_a_chunk_that_does_not_start_where_the_part_ends_is_left_out(blobs: Blobs, offset: int) -> None:
    blobs.append(NAME, 0, len(CONTENT), CONTENT[:3000])
    assert blobs.append(NAME, offset, len(CONTENT), b"other bytes") == (3000, False)
    assert blobs.append(NAME, 3000, len(CONTENT), CONTENT[3000:]) == (len(CONTENT), True)


def test_a_chunk_that_runs_past_the_end_is_left_out(blobs: Blobs) -> None:
    assert blobs.append(NAME, 0, 10, CONTENT) == (0, False)


@pytest.mark.parametrize("wrong", [CONTENT[:-1] + b"?", bytes(len(CONTENT))])
def test_wrong_bytes_are_refused_with_both_hashes_and_nothing_is_left(
    blobs: Blobs, tmp_path: Path, wrong: bytes
) -> None:
    with pytest.raises(pl.Corrupt) as caught:
        send(blobs, wrong, 4096, NAME)
    assert NAME[:12] in caught.value.fact
    assert hashlib.sha256(wrong).hexdigest()[:12] in caught.value.fact
    assert caught.value.remedy
    assert files(tmp_path) == []
    send(blobs, CONTENT, 4096)  # and the right ones are welcome afterwards
    assert blobs.path(NAME).read_bytes() == CONTENT


def test_a_blob_that_is_there_is_complete_at_once_and_never_written_again(blobs: Blobs) -> None:
    send(blobs, CONTENT, 4096)
    before = blobs.path(NAME).stat().st_ino
    assert blobs.append(NAME, 0, len(CONTENT), b"something else") == (len(CONTENT), True)
    assert blobs.path(NAME).read_bytes() == CONTENT
    assert blobs.path(NAME).stat().st_ino == before


def test_two_uploads_of_one_blob_at_once_make_one_whole_blob(blobs: Blobs, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as senders:
        for sent in [senders.submit(send, blobs, CONTENT, 64) for _ in range(4)]:
            sent.result(timeout=60)
    assert blobs.path(NAME).read_bytes() == CONTENT
    assert files(tmp_path) == [NAME]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../../etc/passwd",
        "/etc/passwd",
        NAME.upper(),
        NAME[:-1],
        NAME + "0",
        NAME + "\n",
        "." + NAME[1:],
        "x" * 999,
    ],
)
def test_a_name_that_is_no_sha256_is_refused_everywhere(blobs: Blobs, tmp_path: Path, name: str) -> None:
    for use in (lambda: blobs.append(name, 0, 1, b"x"), lambda: blobs.path(name), lambda: blobs.missing([name])):
        with pytest.raises(pl.InvalidSpec, match="is not a blob's name") as caught:
            use()
        assert len(caught.value.fact) < 200
    assert files(tmp_path) == []


def test_a_blob_that_is_not_there_is_not_found(blobs: Blobs) -> None:
    with pytest.raises(pl.NotFound) as caught:
        blobs.path(NAME)
    assert caught.value.remedy


def test_only_old_blobs_and_parts_that_no_one_needs_are_deleted(blobs: Blobs, tmp_path: Path) -> None:
    contents = [b"needed", b"old", b"young"]
    for content in contents:
        send(blobs, content, 100)
    needed, old, young = (hashlib.sha256(content).hexdigest() for content in contents)
    blobs.append(NAME, 0, len(CONTENT), b"an abandoned part")
    for path in [blobs.path(needed), blobs.path(old), tmp_path / "parts" / NAME]:
        os.utime(path, (100, 100))
    os.utime(blobs.path(young), (300, 300))
    assert blobs.keep_only({needed}, before=200) == len(b"old") + len(b"an abandoned part")
    assert files(tmp_path) == sorted([needed, young])


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("mounting a tmpfs of 256 KiB needs root")
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"this machine does not let root mount a tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_with_the_free_bytes_and_nothing_half_written_is_left(tiny_disk: Path) -> None:
    blobs, large = Blobs(tiny_disk), os.urandom(600_000)
    with pytest.raises(pl.DiskFull, match="bytes are free") as caught:
        send(blobs, large, 64_000)
    assert caught.value.remedy
    assert files(tiny_disk) == []
    send(blobs, CONTENT, 4096)
    assert blobs.path(NAME).read_bytes() == CONTENT


def test_a_full_disk_at_the_last_moment_leaves_nothing_either(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems find out only when the bytes are synced."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(pl.DiskFull):
        send(blobs, CONTENT, 4096)
    assert files(tmp_path) == []


def test_another_trouble_with_the_disk_is_told_by_its_own_name(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(pl.PacelineError, match="Input/output error") as caught:
        send(blobs, CONTENT, 4096)
    assert caught.value.code == "internal"


def test_a_blob_that_a_client_was_told_is_here_counts_as_new(blobs: Blobs) -> None:
    send(blobs, CONTENT, 4096)
    os.utime(blobs.path(NAME), (1.0, 1.0))
    assert blobs.missing([NAME]) == []
    assert blobs.keep_only(set(), before=time.time() - 60) == 0
    assert blobs.path(NAME).read_bytes() == CONTENT


def test_to_remove_what_no_blob_is_called_removes_nothing(blobs: Blobs, tmp_path: Path) -> None:
    send(blobs, CONTENT, 4096)
    blobs.remove(["../blobs", "x", ""])
    assert files(tmp_path) == [NAME]
