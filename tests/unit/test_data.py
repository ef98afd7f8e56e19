"""Data: what users hand over becomes arrays; what workers read is the same whoever reads it."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import paceline as pl
from paceline.arrays import Arrays
from paceline.client.data import normalize
from paceline.training.data import CellRequest, Seeded, Source, fingerprint, lost_reader, open_source, to_device

FRAME = pd.DataFrame({"age": [30, 40, 50], "height": [1.5, 1.6, 1.7], "label": [0, 1, 1]})


def requests(*cells: list[int], epoch: int = 0) -> list[CellRequest]:
    return [CellRequest(epoch, np.array(cell, dtype=np.int64)) for cell in cells]


# ---- on the client ----


@pytest.mark.parametrize(
    ("given", "feature", "target"),
    [
        ((np.zeros((3, 2)), np.zeros(3)), np.float32, np.float32),
        ((np.zeros((3, 2), np.float32), np.zeros(3, np.int32)), np.float32, np.int64),
        ((np.zeros((3, 2), np.uint8), np.zeros(3, np.int8)), np.uint8, np.int64),
        ((np.zeros((3, 2), np.int64), np.zeros(3, bool)), np.int64, bool),
        ((np.zeros((3, 2), np.float16), pd.Series([1, 2, 3])), np.float16, np.int64),
        ([np.zeros((3, 2)), np.zeros(3, np.int32)], np.float32, np.int64),
        ((FRAME, "label"), np.float32, np.int64),
        ((pa.Table.from_pandas(FRAME), "label"), np.float32, np.int64),
        ((FRAME[["age"]], FRAME["height"]), np.int64, np.float32),
    ],
)
def test_arrays_and_tables_become_columns_of_the_types_that_losses_want(given: Any, feature: Any, target: Any) -> None:
    data = normalize(given, "train_data")
    assert isinstance(data, Arrays)
    assert len(data) == 3
    assert [column.dtype for column in data.columns] == [feature, target]


def test_a_table_gives_its_columns_in_order_without_the_target() -> None:
    for table in (FRAME, pa.Table.from_pandas(FRAME)):
        data = normalize((table, "label"), "train_data")
        assert data.columns[0].tolist() == FRAME[["age", "height"]].to_numpy(np.float32).tolist()
        assert data.columns[1].tolist() == [0, 1, 1]


def test_torch_tensors_stay_the_very_tensors_they_are() -> None:
    x, y = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.int32)
    assert [column is given for column, given in zip(normalize((x, y), "train_data").columns, (x, y), strict=True)] == [
        True, True,
    ]  # fmt: skip


def test_a_single_column_is_no_target() -> None:
    assert normalize((np.zeros((3, 2), np.int32),), "train_data").columns[0].dtype == np.int32


def test_a_strided_array_becomes_contiguous_with_its_values() -> None:
    x = np.arange(12.0, dtype=np.float32).reshape(3, 4)[:, ::2]
    column = normalize((x, np.zeros(3)), "train_data").columns[0]
    assert column.flags.c_contiguous
    assert column.tolist() == x.tolist()


class Squares(Dataset[Any]):
    """A map-style Dataset whose samples depend on the random generators, as augmentation does."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        noise = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        return torch.tensor([index**2, *noise], dtype=torch.float64), index


@pytest.mark.parametrize("data", [Squares(), Squares, lambda: Squares()])
def test_datasets_and_builders_are_left_as_they_are(data: Any) -> None:
    assert normalize(data, "train_data") is data


class NoLength:
    def __getitem__(self, index: int) -> int:
        return index


REFUSALS: dict[str, tuple[Any, str]] = {
    "columns of unequal lengths": ((np.zeros((3, 2)), np.zeros(4)), "3, 4"),
    "nothing": (None, "is a NoneType"),
    "a number": (3, "is a int"),
    "no columns": ((), "empty"),
    "no rows": ((np.zeros((0, 2)), np.zeros(0)), "empty"),
    "an empty table": ((FRAME[:0], "label"), "empty"),
    "a scalar": ((np.float32(1), np.float32(2)), "empty"),
    "a column of text": ((np.array(["a", "b"]), np.zeros(2)), "no number"),
    "objects": ((np.array([None, 1]), np.zeros(2)), "no number"),
    "a table without a target": (FRAME, "without a target"),
    "a table without that target": ((FRAME, "salary"), "'salary'"),
    "a table with text": ((FRAME.assign(name=["a", "b", "c"]), "label"), "name"),
    "an Arrow table with text": ((pa.table({"name": ["a"], "label": [1]}), "label"), "name"),
    "a list of lists": ([[1, 2], [3, 4]], "list of list"),
    "a dict": ({"x": np.zeros(3)}, "is a dict"),
    "a path": ("data.csv", "is a str"),
    "something without length": (NoLength(), "no length"),
    "an empty dataset": (TensorDataset(torch.zeros(0, 2)), "empty"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_the_client_refuses(what: str) -> None:
    data, fact = REFUSALS[what]
    with pytest.raises(pl.InvalidSpec) as caught:
        normalize(data, "val_data")
    assert fact in caught.value.fact
    assert caught.value.fact.startswith("val_data")
    assert caught.value.remedy


# ---- on the worker ----


def arrays() -> Arrays:
    return Arrays((np.arange(20, dtype=np.float32).reshape(10, 2), torch.arange(10)))


@pytest.mark.parametrize("data", [arrays(), TensorDataset(torch.arange(20.0).reshape(10, 2), torch.arange(10))])
def test_a_stream_yields_one_batch_for_each_request_in_order(data: Any) -> None:
    source = open_source(data, seed=0)
    assert len(source) == 10
    batches = list(source.stream(requests([3, 1], [], [9, 9, 0])))
    assert [batch[1].tolist() for batch in batches] == [[3, 1], [], [9, 9, 0]]
    assert batches[0][0].tolist() == [[6.0, 7.0], [2.0, 3.0]]


def test_each_batch_has_memory_of_its_own_aligned_like_any_other() -> None:
    source = open_source(arrays(), seed=0)
    first, second = source.stream(requests([0, 1, 2], [0, 1, 2]))
    assert first[0].data_ptr() != second[0].data_ptr()
    assert all(batch[0].data_ptr() % 64 == 0 for batch in (first, second))


def test_an_exception_while_reading_reaches_the_consumer_in_its_place() -> None:
    stream = open_source(arrays(), seed=0).stream(requests([0], [99], [1]))
    assert next(stream)[1].tolist() == [0]
    with pytest.raises(IndexError):
        next(stream)


def read(order: list[tuple[int, int]], augment: Callable[[Any], Any] | None = None, seed: int = 7) -> dict[Any, Any]:
    """Every sample as a reader gets it that asks in this order, from a process of any history."""
    seeded = Seeded(Squares().__getitem__, seed, augment)
    samples = {(epoch, index): seeded[epoch, index, index] for epoch, index in order}
    return {key: [v.tolist() if isinstance(v, torch.Tensor) else v for v in sample] for key, sample in samples.items()}


def jitter(sample: tuple[torch.Tensor, int]) -> tuple[torch.Tensor, int]:
    return sample[0] + torch.rand(()), sample[1]


@pytest.mark.parametrize("augment", [None, jitter])
def test_a_sample_is_the_same_whoever_reads_it_and_in_whatever_order(augment: Any) -> None:
    keys = [(epoch, index) for epoch in range(2) for index in range(20)]
    together = read(keys, augment)
    shuffled = random.Random(0).sample(keys, len(keys))
    assert together == read(shuffled, augment) == read(keys[::2], augment) | read(keys[1::2], augment)
    assert len({str(sample) for sample in together.values()}) == len(keys)  # no two share their noise


def test_noise_differs_from_epoch_to_epoch_and_with_the_seed() -> None:
    assert read([(0, 3)])[(0, 3)] != read([(1, 3)])[(1, 3)]
    assert read([(0, 3)], seed=7) != read([(0, 3)], seed=8)


def test_samples_of_an_evaluation_are_not_augmented() -> None:
    plain, augmented = read([(-1, 4), (0, 4)]), read([(-1, 4), (0, 4)], jitter)
    assert plain[(-1, 4)] == augmented[(-1, 4)]
    assert plain[(0, 4)] != augmented[(0, 4)]


def test_a_dataset_is_read_in_other_processes_to_the_same_samples() -> None:
    source = open_source(Squares(), seed=7)
    first, second = source.stream(requests([5, 2], [0], epoch=1))
    here = read([(1, 5), (1, 2), (1, 0)])
    assert first[0].tolist() == [here[(1, 5)][0], here[(1, 2)][0]]
    assert second[0].tolist() == [here[(1, 0)][0]]
    assert first[1].tolist() == [5, 2]


def test_a_users_collate_makes_the_batch() -> None:
    source = open_source(arrays(), seed=0, collate=lambda samples: {"ids": [int(label) for _, label in samples]})
    assert list(source.stream(requests([4, 2]))) == [{"ids": [4, 2]}]


def test_a_builder_runs_under_a_seed_of_the_spec() -> None:
    def build() -> TensorDataset:
        return TensorDataset(torch.rand(20, 3), torch.from_numpy(np.random.rand(20)))

    prints = [fingerprint(open_source(build, seed)) for seed in (1, 1, 2)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("built", [lambda: [].__iter__(), lambda: 3, lambda: None])
def test_a_builder_of_something_else_is_refused_by_its_type(built: Any) -> None:
    with pytest.raises(pl.InvalidSpec, match=type(built()).__name__) as caught:
        open_source(built, seed=0)
    assert "map-style" in caught.value.remedy


# ---- fingerprints ----


def items(*contents: Any) -> Source:
    """A source of these samples."""

    class Items(Dataset[Any]):
        def __len__(self) -> int:
            return len(contents)

        def __getitem__(self, index: int) -> Any:
            return contents[index]

    return open_source(Items(), seed=0)


KINDS: list[Callable[[int], Any]] = [
    lambda n: torch.tensor([n, 2]),
    lambda n: torch.tensor([n, 2], dtype=torch.bfloat16),
    lambda n: torch.tensor(n == 1),
    lambda n: np.array([n, 2]).T,
    lambda n: np.float32(n),
    lambda n: n,
    lambda n: float(n),
    lambda n: str(n),
    lambda n: bytes([n]),
    lambda n: n == 1,
    lambda n: {"b": n, "a": [1, (n,)]},
    lambda n: (torch.zeros(2), {"x": [np.arange(3) + n]}),
    lambda n: None if n == 1 else 0,
]


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_a_fingerprint_tells_contents_of_every_kind_apart(kind: int) -> None:
    make = KINDS[kind]
    assert fingerprint(items(make(1))) == fingerprint(items(make(1)))
    assert fingerprint(items(make(1))) != fingerprint(items(make(2)))


def test_a_fingerprint_shows_the_length_and_tells_order_and_length_apart() -> None:
    assert fingerprint(items(1, 2, 3)).startswith("3:")
    prints = [fingerprint(items(*contents)) for contents in ([1, 2, 3], [3, 2, 1], [1, 2], [1, 2, 3, 3])]
    assert len(set(prints)) == 4


def test_a_fingerprint_samples_the_first_the_last_and_between() -> None:
    same = fingerprint(items(*range(1000)))
    assert fingerprint(items(-1, *range(1, 1000))) != same
    assert fingerprint(items(*range(999), -1)) != same
    assert fingerprint(items(*range(1000, 2000))) != same


def test_an_object_of_an_unknown_kind_counts_by_its_type_alone() -> None:
    assert fingerprint(items(object())) == fingerprint(items(object()))
    assert fingerprint(items(object())) != fingerprint(items(NoLength()))


def test_arrays_and_a_dataset_of_the_same_samples_have_the_same_fingerprint() -> None:
    x, y = torch.arange(20.0).reshape(10, 2), torch.arange(10)
    assert fingerprint(open_source(TensorDataset(x, y), seed=0)) == fingerprint(open_source(Arrays((x, y)), seed=0))


# ---- to the device ----


class Pair(NamedTuple):
    x: Any
    y: Any


def test_every_tensor_of_a_batch_moves_and_its_shape_of_containers_stays() -> None:
    batch = {"a": [torch.ones(1), "text"], "b": (torch.ones(1), 3), "c": Pair(torch.ones(1), None)}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"][0].device.type == moved["b"][0].device.type == moved["c"].x.device.type == "meta"
    assert (moved["a"][1], moved["b"][1], moved["c"].y) == ("text", 3, None)
    assert [type(moved[key]) for key in "abc"] == [list, tuple, Pair]


class Ending(Dataset[Any]):
    """Its reader meets an end at sample 5."""

    def __init__(self, end: Callable[[], None]) -> None:
        self.end = end

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 5:
            self.end()
        return torch.tensor([index])


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def broken() -> None:
    raise OSError("no such sample")


@pytest.mark.parametrize(("end", "is_lost"), [(killed, True), (broken, False)])
def test_a_killed_reader_is_told_from_one_whose_code_raises(end: Callable[[], None], is_lost: bool) -> None:
    batches = open_source(Ending(end), seed=0).stream(requests([0, 1, 2], [3, 4, 5], [6, 7]))
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one depends on what the main process did then
        list(batches)
    assert lost_reader(caught.value) is is_lost
