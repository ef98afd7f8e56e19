"""Shards: indexed by their footers, unpacked into a folder that keeps its bound, read in any order."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import paceline as pl
from paceline.shards.data import Place
from paceline.shards.folder import PART, BoundedFolder, NoRoom, used_folder
from paceline.training.data import CellRequest, fingerprint, open_source

from shard_files import FORMATS, TARGETS, digit_shards, most_of, size_of, web_server, write_shard
from workloads import digits


def read(data: pl.ShardedData, folder: Path, *cells: list[int], epoch: int = 0, **functions: Any) -> list[Any]:
    source = open_source(data, 0, **functions, place=Place(folder))
    return list(source.stream(CellRequest(epoch, np.array(cell, np.int64)) for cell in cells))


# ---- formats ----


@pytest.mark.parametrize("ending", FORMATS)
def test_samples_of_any_shards_are_read_in_the_order_asked_for(tmp_path: Path, ending: str) -> None:
    (x, y), _ = digits()
    data = pl.ShardedData(digit_shards(tmp_path, ending), target=TARGETS[ending])
    assert len(data) == len(x)
    cells = [[700, 3, 1436, 59, 60], [3, 3, 0]]
    batches = read(data, tmp_path / "cache", *cells)
    for (pixels, labels), cell in zip(batches, cells, strict=True):
        torch.testing.assert_close(pixels, torch.tensor(x[cell]), rtol=0, atol=0)
        assert labels.tolist() == y[cell].tolist()
        assert labels.dtype == torch.int64


@pytest.mark.parametrize("ending", FORMATS)
def test_an_index_reads_little_of_a_large_shard(tmp_path: Path, ending: str) -> None:
    samples = 40 if ending == "tar" else 8000  # a tar file's every header is read, so that its samples must be large
    wide = 64 if ending != "tar" else 64 * 1024
    noise = np.random.default_rng(0).random((samples, wide), np.float32)
    write_shard(tmp_path / f"a.{ending}", noise, np.arange(samples), batch=2000)
    size = (tmp_path / f"a.{ending}").stat().st_size
    with web_server(tmp_path) as (address, served):
        assert len(pl.ShardedData([f"{address}/a.{ending}"], cache=2**30)) == samples
        assert size > 2_000_000
        assert 0 < served[f"a.{ending}"] < size / 4


def test_a_hugging_face_stream_is_read_like_an_arrow_file(tmp_path: Path) -> None:
    table = pa.table({"ids": [[1, 2], [3, 4], [5, 6]], "label": [0, 1, 0]})
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    ((ids, labels),) = read(pl.ShardedData([tmp_path / "a.arrow"], target="label"), tmp_path / "c", [2, 0])
    assert ids.tolist() == [[5, 6], [1, 2]]
    assert labels.tolist() == [0, 0]


def test_fields_of_one_number_become_one_input_like_those_of_a_table(tmp_path: Path) -> None:
    table = pa.table({"age": [30, 40], "cut": pa.array(["a", "b"]).dictionary_encode(), "pay": [1.5, 2.5], "y": [1, 0]})
    pq.write_table(table, tmp_path / "a.parquet")
    data = pl.ShardedData([tmp_path / "a.parquet"], target="y", fields=["age", "pay"])
    ((features, target),) = read(data, tmp_path / "c", [1, 0])
    assert features.tolist() == [[40, 2.5], [30, 1.5]]
    assert (features.dtype, target.dtype) == (torch.float32, torch.int64)
    with pytest.raises(pl.InvalidSpec, match="'cut' holds no numbers"):
        read(pl.ShardedData([tmp_path / "a.parquet"], target="y"), tmp_path / "c", [0])


def test_without_a_target_a_sample_is_a_dict_and_collate_makes_the_batch(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one", "two", "three"], "n": [1, 2, 3]}), tmp_path / "a.parquet")
    data = pl.ShardedData([tmp_path / "a.parquet"])
    (plain,) = read(data, tmp_path / "c", [2, 0])
    assert plain["text"] == ["three", "one"]
    assert plain["n"].tolist() == [3, 1]
    (collated,) = read(
        data, tmp_path / "c", [2, 0], collate=lambda samples: [(s["text"], int(s["n"])) for s in samples]
    )
    assert collated == [("three", 3), ("one", 1)]


def test_decode_makes_samples_in_other_processes_under_the_samples_own_seed(tmp_path: Path) -> None:
    def noisy(sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(sample["npy"][:2]) + torch.rand(()), int(sample["cls"])

    data = pl.ShardedData(digit_shards(tmp_path, "tar"), decode=noisy)
    together = read(data, tmp_path / "c", [5, 900, 7], epoch=1)[0]
    alone = [read(data, tmp_path / "c", [index], epoch=1)[0] for index in (5, 900, 7)]
    assert together[0].tolist() == [one[0][0].tolist() for one in alone]
    assert read(data, tmp_path / "c", [5], epoch=2)[0][0].tolist() != alone[0][0].tolist()


def test_augment_meets_training_samples_and_those_of_an_evaluation_stay(tmp_path: Path) -> None:
    data = pl.ShardedData(digit_shards(tmp_path, "parquet"), target="label")
    shifted = {"augment": lambda sample: (sample[0] + 1, sample[1])}
    plain, evaluated = read(data, tmp_path / "c", [3])[0], read(data, tmp_path / "c", [3], epoch=-1, **shifted)[0]
    assert evaluated[0].tolist() == plain[0].tolist()
    assert read(data, tmp_path / "c", [3], **shifted)[0][0].tolist() == (plain[0] + 1).tolist()


# ---- what is refused ----


def shard(folder: Path, name: str, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), folder / name)
    return folder / name


REFUSED: dict[str, tuple[Callable[[Path], Any], type[pl.PacelineError], str]] = {
    "one path": (lambda f: pl.ShardedData("a.parquet"), pl.InvalidSpec, "'a.parquet'"),
    "none": (lambda f: pl.ShardedData([]), pl.InvalidSpec, "[]"),
    "an odd cache": (lambda f: pl.ShardedData(["a.parquet"], cache="much"), pl.InvalidSpec, "'much'"),
    "no window": (lambda f: pl.ShardedData(["a.parquet"], window=0), pl.InvalidSpec, "window=0"),
    "target and decode": (lambda f: pl.ShardedData(["a.tar"], target="y", decode=len), pl.InvalidSpec, "decode="),
    "another ending": (lambda f: len(pl.ShardedData([shard(f, "a.csv", y=[1])])), pl.InvalidSpec, "'.csv'"),
    "no such file": (lambda f: len(pl.ShardedData([f / "none.parquet"])), pl.NotFound, "none.parquet"),
    "no such field": (
        lambda f: len(pl.ShardedData([shard(f, "a.parquet", y=[1])], target="z")), pl.InvalidSpec, "'z'",
    ),
    "files of two kinds": (
        lambda f: len(pl.ShardedData([shard(f, "a.parquet", y=[1]), shard(f, "b.parquet", z=[1])])),
        pl.InvalidSpec, "b.parquet has the fields z",
    ),
    "no Parquet": (lambda f: (f / "a.parquet").write_bytes(b"x" * 99) and len(pl.ShardedData([f / "a.parquet"])),
                   pl.Corrupt, "a.parquet"),
    "a torn tar": (lambda f: (f / "a.tar").write_bytes(b"x" * 1024) and len(pl.ShardedData([f / "a.tar"])),
                   pl.Corrupt, "a.tar"),
    "tensors of unequal lengths": (
        lambda f: save_file({"x": np.zeros(2), "y": np.zeros(3)}, f / "a.safetensors")
        or len(pl.ShardedData([f / "a.safetensors"])),
        pl.InvalidSpec, "unequal lengths",
    ),
    "a cache for less than two windows": (
        lambda f: len(pl.ShardedData(digit_shards(f, "parquet"), cache=100_000)), pl.InvalidSpec, "two windows",
    ),
    "an unknown scheme": (lambda f: len(pl.ShardedData(["gopher://a/b.parquet"])), pl.InvalidSpec, "gopher"),
    "nobody there": (lambda f: len(pl.ShardedData(["http://127.0.0.1:9/a.tar"])), pl.DataUnreachable, "5 attempts"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_sharded_data_refuses(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, kind, fact = REFUSED[what]
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(kind) as caught:
        make(tmp_path)
    assert fact in str(caught.value)
    assert caught.value.remedy


def test_a_server_without_ranges_is_refused(tmp_path: Path) -> None:
    digit_shards(tmp_path, "parquet", 1)
    with (
        web_server(tmp_path, ranges=False) as (address, _),
        pytest.raises(pl.InvalidSpec, match="does not serve ranges"),
    ):
        len(pl.ShardedData([f"{address}/000.parquet"]))


@pytest.mark.parametrize("where", ["local", "http"])
def test_a_file_that_changed_since_it_was_indexed_is_not_used(tmp_path: Path, where: str) -> None:
    (path,) = digit_shards(tmp_path, "parquet", 1)
    with web_server(tmp_path) as (address, _):
        data = pl.ShardedData([path if where == "local" else f"{address}/{path.name}"], target="label")
        assert len(data) == 1437
        digit_shards(tmp_path, "parquet", 2)
        with pytest.raises(pl.Corrupt, match="not the file that was indexed"):
            read(data, tmp_path / "cache", [0])


def test_a_download_that_breaks_off_is_asked_for_again_and_never_used_torn(tmp_path: Path) -> None:
    (x, _), _ = digits()
    (tmp_path / "remote").mkdir()
    digit_shards(tmp_path / "remote", "safetensors", 4)
    with web_server(tmp_path / "remote", torn=3) as (address, served):
        data = pl.ShardedData([f"{address}/{at:03}.safetensors" for at in range(4)], target="label")
        cells = [[0, 400, 800, 1436]]
        assert read(data, tmp_path / "cache", *cells)[0][0].tolist() == x[cells[0]].tolist()
        assert served[""] > 8


def test_workers_that_index_for_themselves_have_the_same_fingerprint(tmp_path: Path) -> None:
    paths = digit_shards(tmp_path, "parquet")
    prints = [
        fingerprint(open_source(lambda: pl.ShardedData(paths, target="label"), 0, place=Place(tmp_path / name)))
        for name in "ab"
    ]
    assert prints[0] == prints[1]
    other = open_source(pl.ShardedData(paths[::-1], target="label"), 0, place=Place(tmp_path / "a"))
    assert fingerprint(other) != prints[0]


# ---- the bounded folder ----


def put(folder: BoundedFolder, name: str, nbytes: int, spared: tuple[str, ...] = ()) -> None:
    with folder.writing(spared, patience_s=0) as part:
        part.write(b"x" * nbytes)
        part.publish(name)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 60)), max_size=30))
@settings(deadline=None)
def test_a_folder_keeps_its_bound_and_the_file_written_last(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[str, int]]
) -> None:
    folder = BoundedFolder(tmp_path_factory.mktemp("bounded") / "folder", 100)
    for name, nbytes in writes:
        if not folder.touch(name):
            put(folder, name, nbytes)
        assert folder.touch(name)
        assert size_of(folder.path) <= 100


def test_the_least_recently_used_file_goes_first_and_spared_ones_stay(tmp_path: Path) -> None:
    folder = BoundedFolder(tmp_path / "folder", 100)
    for at, name in enumerate("abc"):
        put(folder, name, 30)
        os.utime(folder.path / name, (at, at))
    folder.touch("a")
    put(folder, "d", 30)
    assert [folder.touch(name) for name in "abcd"] == [True, False, True, True]
    put(folder, "e", 30, spared=("a", "d"))
    assert [folder.touch(name) for name in "abcde"] == [True, False, False, True, True]
    with pytest.raises(NoRoom):
        put(folder, "f", 30, spared=("a", "d", "e"))
    with pytest.raises(pl.InvalidSpec, match="cache=100"):
        put(folder, "f", 101)


def test_a_part_takes_room_while_it_is_written_and_a_killed_writers_does_not(tmp_path: Path) -> None:
    folder = BoundedFolder(tmp_path / "folder", 100)
    with folder.writing() as part:
        part.write(b"x" * 60)
        with pytest.raises(NoRoom):
            put(folder, "a", 60)
    assert os.listdir(folder.path) == []
    (folder.path / f"{PART}left").write_bytes(b"x" * 60)  # nobody holds its lock
    put(folder, "a", 60)
    assert os.listdir(folder.path) == ["a"]


def test_who_comes_second_waits_for_who_writes_or_is_told(tmp_path: Path) -> None:
    folder = BoundedFolder(tmp_path / "folder", 100)
    written = []

    def second() -> None:
        with folder.alone("a"):
            written.append(folder.touch("a"))

    with folder.alone("a") as mine:
        assert mine
        with folder.alone("a", wait=False) as other:
            assert not other
        thread = threading.Thread(target=second)
        thread.start()
        put(folder, "a", 10)
    thread.join(timeout=10)
    assert written == [True]


def test_data_that_nobody_uses_any_more_leaves_when_other_data_come(tmp_path: Path) -> None:
    first, in_use = used_folder(tmp_path, "first")
    put(BoundedFolder(first, 100), "a", 10)
    second, _lock = used_folder(tmp_path, "second")
    assert (first / "a").exists()
    in_use.close()
    used_folder(tmp_path, "third")
    assert not first.exists()
    assert second.parent == tmp_path


def test_a_cache_of_a_fraction_serves_all_data_within_its_bound(tmp_path: Path) -> None:
    (x, _), _ = digits()
    (tmp_path / "remote").mkdir()
    paths = digit_shards(tmp_path / "remote", "safetensors", 48)
    bound = sum(path.stat().st_size for path in paths) // 6
    seen = []
    with web_server(tmp_path / "remote") as (address, served):
        data = pl.ShardedData([f"{address}/{path.name}" for path in paths], target="label", cache=bound, window=2)
        source = open_source(data, 0, place=Place(tmp_path / "cache"))
        order = data.order.samples(0, 0, 0, len(x))
        for (pixels, _), cell in zip(
            source.stream(CellRequest(0, cell) for cell in np.array_split(order, 200)),
            np.array_split(order, 200),
            strict=True,
        ):
            assert pixels.tolist() == x[cell].tolist()
            seen.append(most_of(tmp_path / "cache"))
        assert max(seen) <= bound
        whole = sum(path.stat().st_size for path in paths)
        assert served.total() < 2.5 * whole  # so small ones come whole to be indexed, then once to be read


def test_a_reader_finds_its_shard_again_after_it_was_evicted(tmp_path: Path) -> None:
    (x, _), _ = digits()
    data = pl.ShardedData(digit_shards(tmp_path, "parquet", 4), target="label")
    source = open_source(data, 0, place=Place(tmp_path / "cache"))

    def pixels(index: int) -> list[float]:
        return next(source.stream([CellRequest(0, np.array([index]))]))[0][0].tolist()

    assert pixels(0) == x[0].tolist()
    for file in (tmp_path / "cache").glob("*/*"):
        if file.is_file() and file.parent.suffix != ".locks":
            file.unlink()
    assert pixels(1) == x[1].tolist()
    assert pixels(1436) == x[1436].tolist()
