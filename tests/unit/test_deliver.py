"""A model in several files: cut by size, named as Hugging Face names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import paceline as pl
from paceline.client.shards import fetch_files
from paceline.messages.from_worker import ModelFile, Warned
from paceline.messages.message import Message
from paceline.training import mode
from paceline.training.monitor import Monitor
from paceline.training.sharded.copies import Copies
from paceline.training.sharded.deliver import cut_files
from paceline.transfer import BlobStore


@given(st.lists(st.integers(0, 100), min_size=1, max_size=30), st.integers(1, 150))
def test_files_hold_every_tensor_in_order_and_only_a_lone_one_is_over_the_bound(sizes: list[int], most: int) -> None:
    named = [(f"t{at}", nbytes) for at, nbytes in enumerate(sizes)]
    files = cut_files(named, most)
    assert [name for held in files.values() for name in held] == [name for name, _ in named]
    by_name = dict(named)
    assert all(len(held) == 1 or sum(by_name[name] for name in held) <= most for held in files.values())
    assert list(files) == [f"model-{at:05}-of-{len(files):05}.safetensors" for at in range(1, len(files) + 1)]


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/home/ann/model.safetensors", ".bashrc", "model"])
def test_a_file_that_would_not_lie_in_the_models_folder_is_refused_by_master_and_client(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(ValidationError):
        ModelFile(name=name, blob="b", nbytes=1)
    found = {"files": [{"name": f"../{name}", "blob": "b"}], "blob": "index"}
    with pytest.raises(pl.ProtocolError, match="no plain file name"):
        fetch_files(BlobStore(httpx.Client()), tmp_path, found)


class FullFor(BlobStore):
    """A master without room for the first few uploads."""

    def __init__(self, times: int) -> None:
        self.left = times

    def upload_file(self, path: Path, arrived: Callable[[int], None] = lambda _: None) -> str:
        self.left -= 1
        if self.left >= 0:
            raise pl.DiskFull("the master's disk is full.")
        arrived(path.stat().st_size)
        return "blob"


def test_a_finished_model_waits_for_room_on_the_masters_disk_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mode, "RETRY_S", 0.0)
    said: list[Message] = []
    monitor, file = Monitor(), tmp_path / "model"
    file.write_bytes(b"12345")
    surroundings: Any = (None, torch.device("cpu"), None, FullFor(3), tmp_path, tmp_path, said.append, monitor)
    assert mode.Around(*surroundings).deliver(file) == "blob"
    assert [message.error["code"] for message in said if isinstance(message, Warned)] == ["disk_full"]
    assert (monitor.beat().cells, monitor.beat().carried) == (3, 5)  # waiting is no hang, nor is sending


def test_half_made_copies_of_an_attempt_that_is_over_are_removed(tmp_path: Path) -> None:
    for step in ("10", "11", "12"):
        (tmp_path / step).mkdir()
        (tmp_path / step / "__3_0.distcp").touch()
    surroundings: Any = (None, torch.device("cpu"), None, None, tmp_path, tmp_path, None, Monitor())
    group: Any = None
    Copies(mode.Around(*surroundings), group).keep_only(11, None)
    assert [path.name for path in tmp_path.iterdir()] == ["11"]
