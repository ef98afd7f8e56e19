"""Data in shards trains to one digest: any format, any number of workers, over a network, through a small cache."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import paceline as pl

from helpers import running_master, wait_until
from shard_files import FORMATS, TARGETS, digit_shards, most_of, object_store, web_server
from workloads import digits, spec

SHARDS = 48
ONCE = {"expected": 1437, "committed": 1437, "twice": 0}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    return {ending: digit_shards(tmp_path_factory.mktemp(ending), ending, SHARDS) for ending in FORMATS}


def on(paths: list[Any], ending: str = "parquet", workers: int = 1, **changes: Any) -> pl.TrainSpec:
    """Three epochs over the digits in these shards."""
    data = pl.ShardedData(paths, target=TARGETS[ending], **changes.pop("data", {}))
    return spec(workers=workers, train_data=data, **{"stop": pl.MaxEpochs(3), **changes})


@pytest.fixture(scope="module")
def reference(client: pl.Client, shards: dict[str, list[Path]]) -> str:
    return client.submit(on(shards["parquet"])).result(timeout=120).digest


@pytest.mark.parametrize(("ending", "workers"), [("parquet", 2), ("arrow", 3), ("tar", 2), ("safetensors", 3)])
def test_shards_have_one_digest_in_any_format_on_any_number_of_workers(
    client: pl.Client, shards: dict[str, list[Path]], reference: str, ending: str, workers: int
) -> None:
    result = client.submit(on(shards[ending], ending, workers)).result(timeout=120)
    assert result.digest == reference
    assert result.ledger == [{"epoch": epoch, **ONCE} for epoch in range(3)]
    assert result.metrics["val_accuracy"] > 0.85


def test_a_builder_indexes_the_shards_on_the_nodes(
    client: pl.Client, shards: dict[str, list[Path]], reference: str
) -> None:
    paths = shards["parquet"]
    job = client.submit(spec(workers=2, train_data=lambda: pl.ShardedData(paths, target="label"), stop=pl.MaxEpochs(3)))
    assert job.result(timeout=120).digest == reference


def test_another_window_is_another_order_and_so_another_model(
    client: pl.Client, shards: dict[str, list[Path]], reference: str
) -> None:
    job = client.submit(on(shards["parquet"], data={"window": 2}))
    assert job.result(timeout=120).digest != reference


def test_shards_evaluate_like_arrays(client: pl.Client, tmp_path: Path) -> None:
    x, y = digits()[1]
    paths = []
    for at, (pixels, labels) in enumerate(zip(np.array_split(x, 5), np.array_split(y, 5), strict=True)):
        paths.append(tmp_path / f"{at}.parquet")
        pq.write_table(pa.table({"x": list(pixels), "y": labels}), paths[-1])
    job = client.submit(spec(workers=2, val_data=pl.ShardedData(paths, target="y")))
    assert job.result(timeout=60).history == client.submit(spec()).result(timeout=60).history


class Watch:
    """The most bytes that a node's cache took, looked at all the time."""

    def __init__(self, folder: Path) -> None:
        self.most = 0
        self._folder, self._over = folder, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._over.wait(0.002):
            for cache in self._folder.glob("nodes/*/cache/shards"):
                self.most = max(self.most, most_of(cache))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[tuple[pl.Client, Path]]:
    with running_master(tmp_path / "master", agents=2, cores=4) as client:
        wait_until(lambda: len(client.nodes()) == 2)
        yield client, tmp_path / "master"


@pytest.mark.slow
def test_data_of_several_times_the_cache_train_over_http_with_a_worker_killed(
    two_nodes: tuple[pl.Client, Path], shards: dict[str, list[Path]], client: pl.Client
) -> None:
    cluster, folder = two_nodes
    paths = shards["safetensors"]
    whole = sum(path.stat().st_size for path in paths)
    window, long = {"window": 2}, {"stop": pl.MaxEpochs(5)}
    expected = client.submit(on(paths, "safetensors", data=window, **long)).result(timeout=120).digest
    with web_server(paths[0].parent, torn=40) as (address, served), Watch(folder) as watch:
        urls = [f"{address}/{path.name}" for path in paths]
        bounded = {**window, "cache": whole // 6}
        job = cluster.submit(on(urls, "safetensors", workers=4, data=bounded, **long))
        wait_until(lambda: any(worker["last_step"] > 40 for worker in job.workers()))
        os.kill(job.workers()[1]["pid"], signal.SIGKILL)
        result = job.result(timeout=120)
        assert result.digest == expected
        assert result.ledger == [{"epoch": epoch, **ONCE} for epoch in range(5)]
        assert 0 < watch.most <= whole // 6
        assert served.total() > 3 * whole  # it was fetched again in each epoch


@pytest.mark.slow
def test_shards_train_from_an_object_store(
    shards: dict[str, list[Path]], reference: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths = shards["parquet"]
    with object_store(paths[0].parent) as store:
        for name, value in store.items():
            if name != "endpoint":
                monkeypatch.setenv(name, value)  # of client and nodes alike, as credentials are
        with running_master(tmp_path / "master", cores=3) as client:
            urls = [f"s3://shards/digits/{path.name}" for path in paths]
            storage = {"endpoint": store["endpoint"]}
            result = client.submit(on(urls, workers=2, data={"storage": storage})).result(timeout=120)
            assert result.digest == reference
            with pytest.raises(pl.NotFound, match=r"none\.parquet"):
                client.submit(on(["s3://shards/none.parquet"], data={"storage": storage}))


def test_each_sample_is_served_once_an_epoch(client: pl.Client, tmp_path: Path) -> None:
    (x, y), _ = digits()
    paths = []
    numbers = np.arange(len(x))
    for at, part in enumerate(np.array_split(numbers, 24)):
        paths.append(tmp_path / f"{at}.parquet")
        pq.write_table(pa.table({"number": part, "x": list(x[part]), "y": y[part]}), paths[-1])
    served = tmp_path / "served"

    def recorded(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if model.training:
            with served.open("a") as file:
                file.write("".join(f"{number}\n" for number in batch["number"].tolist()))
        return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    job = client.submit(
        spec(
            workers=3,
            train_data=pl.ShardedData(paths, window=3),
            val_data=None,
            metrics={},
            loss=None,
            training_step=recorded,
            stop=pl.MaxEpochs(2),
        )
    )
    assert [row["committed"] for row in job.result(timeout=60).ledger] == [1437, 1437]
    counts = Counter(map(int, served.read_text().split()))
    assert counts == dict.fromkeys(range(1437), 2)


def test_a_shard_that_changes_while_it_trains_ends_the_job_by_its_name(client: pl.Client, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    remote.mkdir()
    digit_shards(remote, "parquet", 24)
    with web_server(remote) as (address, _):
        indexed = on([f"{address}/{at:03}.parquet" for at in range(24)])
        assert len(indexed.train_data) == 1437
        digit_shards(remote, "parquet", 23)
        with pytest.raises(pl.Corrupt, match="not the file that was indexed"):
            client.submit(indexed).result(timeout=60)
