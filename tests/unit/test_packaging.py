"""Packages: what is packed here opens to the same thing on a worker, and nothing is ever unpickled on the way."""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import paceline
from paceline.arrays import Arrays
from paceline.client.packaging import OUT_OF_BAND_FROM_BYTES, Package, pack
from paceline.client.submission import prepare
from paceline.training.packages import NodeCache, open_package

SOURCE = Path(paceline.__file__).parent


def opened(package: Package, folder: Path) -> Any:
    """What a worker gets: the blobs as files in its node's cache."""
    for name, data in package.blobs.items():
        (folder / name).write_bytes(bytes(data))
    return open_package(package.ref, NodeCache(folder / "empty", [folder], store=None))  # type: ignore[arg-type]


def roundtrip(value: Any, folder: Path) -> Any:
    return opened(pack(value, "value"), folder)


class Tied(torch.nn.Module):
    """A language model's usual shape: the head is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(200, 100)
        self.head = torch.nn.Linear(100, 200, bias=False)
        self.head.weight = self.embed.weight


DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (300, 300)], ids=str)
def test_tensors_arrive_with_their_bits_dtype_and_shape(
    dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path
) -> None:
    tensor = (torch.randn(shape) * 50).to(dtype)
    again = roundtrip({"here": [tensor]}, tmp_path)["here"][0]
    assert type(again) is torch.Tensor
    assert (again.dtype, again.shape, again.requires_grad) == (tensor.dtype, tensor.shape, False)
    assert torch.equal(again, tensor)


def test_views_and_transposes_arrive_with_their_values(tmp_path: Path) -> None:
    base = torch.arange(40_000.0).reshape(200, 200)
    for view in (base.t(), base[10:20, ::3], base[5]):
        assert torch.equal(roundtrip(view, tmp_path), view)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5).flatmap(lambda s: st.tuples(st.just(s), st.permutations(range(len(s))))))  # fmt: skip
def test_dense_tensors_keep_their_strides_whatever_the_order_of_their_dimensions(
    tmp_path: Path, laid_out: tuple[list[int], list[int]]
) -> None:
    shape, order = laid_out
    tensor = torch.randn(shape).permute(order)
    again = roundtrip(tensor, tmp_path)
    assert again.stride() == tensor.stride()
    assert torch.equal(again, tensor)


def test_a_channels_last_model_stays_one_and_a_tensor_with_gaps_arrives_without_them(tmp_path: Path) -> None:
    model = torch.nn.Conv2d(64, 96, 3).to(memory_format=torch.channels_last)
    again = roundtrip(model, tmp_path)
    assert again.weight.stride() == model.weight.stride()
    assert again.weight.is_contiguous(memory_format=torch.channels_last)
    base = torch.arange(60.0).reshape(3, 4, 5)
    for loose in (base[:, ::2], base[1:, :, 2:], torch.ones(3, 1).expand(3, 4)):
        arrived = roundtrip(loose, tmp_path)
        assert arrived.is_contiguous()
        assert torch.equal(arrived, loose)
    assert torch.equal(roundtrip(torch.ones(3, dtype=torch.complex64).conj().imag, tmp_path), torch.zeros(3))


def test_parameters_stay_parameters_and_frozen_ones_frozen(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(200, 200), torch.nn.BatchNorm1d(200))
    model[0].bias.requires_grad_(False)
    again = roundtrip(model, tmp_path)
    assert [(n, type(p), p.requires_grad) for n, p in again.named_parameters()] == [
        (n, torch.nn.Parameter, p.requires_grad) for n, p in model.named_parameters()
    ]
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    assert roundtrip(torch.zeros(3, requires_grad=True), tmp_path).requires_grad


def test_tied_weights_stay_tied_and_travel_once(tmp_path: Path) -> None:
    package = pack(Tied(), "model")
    again = opened(package, tmp_path)
    assert again.head.weight is again.embed.weight
    assert len(list(again.parameters())) == 1
    assert package.ref.nbytes < 1.5 * 200 * 100 * 4


def test_a_worker_writes_to_a_copy_and_the_file_keeps_its_bytes(tmp_path: Path) -> None:
    package = pack(torch.zeros(100_000), "value")
    opened(package, tmp_path).fill_(7.0)
    assert opened(package, tmp_path).abs().sum() == 0


class Kept:
    """The master's blobs, of which some may be gone."""

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self.blobs = blobs

    def download(self, name: str, path: Path) -> None:
        if name not in self.blobs:
            raise paceline.NotFound(f"there is no blob {name}.")
        path.write_bytes(self.blobs[name])


def test_a_checked_blob_has_its_names_bytes_or_is_fetched_anew_or_refused(tmp_path: Path) -> None:
    data = b"a checkpoint"
    name = hashlib.sha256(data).hexdigest()
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    cache = NodeCache(own, [shared], Kept({name: data}))  # type: ignore[arg-type]
    assert cache.checked(name).read_bytes() == data
    (own / name).write_bytes(b"rotten")
    assert cache.checked(name).read_bytes() == data
    (shared / name).write_bytes(b"rotten")
    with pytest.raises(paceline.Corrupt, match=name[:12]):
        cache.checked(name)
    with pytest.raises(paceline.NotFound):
        NodeCache(tmp_path / "other", [], Kept({})).checked(name)  # type: ignore[arg-type]


def test_workers_of_a_node_that_need_a_blob_at_once_fetch_it_once(tmp_path: Path) -> None:
    package = pack(torch.arange(100_000), "value")
    fetched: list[str] = []

    class Slow(Kept):
        def download(self, name: str, path: Path) -> None:
            fetched.append(name)
            time.sleep(0.05)
            super().download(name, path)

    def work(_: int) -> int:
        cache = NodeCache(tmp_path / "cache", [], Slow(package.blobs))  # type: ignore[arg-type]
        return int(open_package(package.ref, cache).sum())

    with ThreadPoolExecutor(4) as workers:
        assert list(workers.map(work, range(4))) == [sum(range(100_000))] * 4
    assert sorted(fetched) == sorted(package.blobs)


@pytest.mark.parametrize("make", [torch.zeros, np.zeros], ids=["torch", "numpy"])
def test_large_arrays_travel_beside_the_pickle_and_small_ones_inside(make: Any) -> None:
    large = pack({"x": make(OUT_OF_BAND_FROM_BYTES // 4 * 2)}, "value")
    assert len(large.ref.buffers) == 1
    assert len(large.blobs[large.ref.pickle]) < 2000
    assert pack({"x": make(100)}, "value").ref.buffers == ()


def test_every_blob_is_named_by_its_sha256_and_counted() -> None:
    package = pack({"x": np.arange(50_000), "y": torch.randn(50_000)}, "value")
    assert set(package.blobs) == set(package.ref.blobs)
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in package.blobs.items())
    assert package.ref.nbytes == sum(memoryview(data).nbytes for data in package.blobs.values())


def test_equal_arrays_are_one_blob_and_equal_packages_have_equal_names(tmp_path: Path) -> None:
    package = pack([np.ones(50_000), np.ones(50_000)], "value")
    assert len(package.ref.buffers) == 2
    assert len(package.blobs) == 2  # the pickle, and one buffer for both
    assert [part.sum() for part in opened(package, tmp_path)] == [50_000, 50_000]
    assert pack([np.ones(50_000), np.ones(50_000)], "value").ref == package.ref


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(rows=st.integers(0, 400), width=st.integers(1, 60))
def test_arrays_arrive_whatever_their_size(tmp_path: Path, rows: int, width: int) -> None:
    data = Arrays((np.random.default_rng(0).random((rows, width), dtype=np.float32), torch.arange(rows)))
    again = roundtrip(data, tmp_path)
    assert len(again) == rows
    assert np.array_equal(again.columns[0], data.columns[0])
    assert torch.equal(again.columns[1], data.columns[1])


MODULE = """
from their_helpers import FACTOR

class Net:
    def forward(self, x):
        return scale(x)

def scale(x):
    return x * FACTOR
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A user's project of two modules, and how to make this process forget it, as a node never knew it."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "their_model.py").write_text(MODULE)
    (folder / "their_helpers.py").write_text("FACTOR = 3\n")
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module("their_model")
    _forget("their_model", "their_helpers")


def _forget(*modules: str) -> None:
    for module in modules:
        sys.modules.pop(module, None)


def test_the_users_own_modules_travel_by_value(project: Any, tmp_path: Path) -> None:
    package = pack({"model": project.Net(), "function": project.scale}, "model")
    _forget("their_model", "their_helpers")
    sys.path.remove(str(tmp_path / "project"))
    with pytest.raises(ImportError):
        importlib.import_module("their_model")
    again = opened(package, tmp_path)
    assert again["model"].forward(2) == 6
    assert again["function"](5) == 15
    assert "their_model" not in sys.modules


def test_installed_packages_and_paceline_itself_travel_by_name() -> None:
    for value, name in ((torch.nn.functional.cross_entropy, b"torch"), (Arrays, b"paceline.arrays")):
        data = bytes(pack(value, "value").blobs[pack(value, "value").ref.pickle])
        assert name in data
        assert len(data) < 200


def test_packing_leaves_the_users_modules_as_they_were_for_other_picklers(project: Any) -> None:
    pack(project.Net(), "model")
    assert cloudpickle.list_registry_pickle_by_value() == set()


class Trap:
    """Tells when someone opens its pickle."""

    sprung = 0

    def __reduce__(self) -> Any:
        return _spring, ()


def _spring() -> Trap:
    Trap.sprung += 1
    return Trap()


class Augment:
    def __init__(self, held: Any) -> None:
        self.held = held

    def __call__(self, sample: Any) -> Any:
        return sample


def test_nothing_is_unpickled_on_the_client(tmp_path: Path) -> None:
    Trap.sprung = 0
    spec = paceline.TrainSpec(
        model=torch.nn.Linear(2, 1),
        train_data=(np.zeros((4, 2)), np.zeros(4)),
        loss=torch.nn.functional.mse_loss,
        optimizer=torch.optim.SGD,
        batch_size=2,
        stop=paceline.MaxSteps(1),
        augment=Augment(Trap()),
    )
    packed = prepare(spec)
    assert Trap.sprung == 0
    opened(Package(packed.submission.program, packed.blobs), tmp_path)
    assert Trap.sprung == 1  # and the trap works


def _unpicklers(path: Path) -> list[str]:
    """What in this file could open a pickle: `pickle.loads`, `torch.load` and their like, by whatever name."""
    names, opens = (
        {"pickle", "cloudpickle", "torch", "joblib", "dill", "shelve", "marshal"},
        ("load", "loads", "Unpickler"),
    )
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in names and node.attr in opens:
            found.append(ast.unparse(node))
        if isinstance(node, ast.ImportFrom) and node.module in names:
            found += [f"{node.module}.{imported.name}" for imported in node.names if imported.name in opens]
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            found.append(ast.unparse(node))
    return found


def test_one_file_unpickles_and_only_workers_use_it() -> None:
    found = {str(path.relative_to(SOURCE)): calls for path in SOURCE.rglob("*.py") if (calls := _unpicklers(path))}
    assert found == {"training/packages.py": ["pickle.loads"]}
    users = {str(p.relative_to(SOURCE)) for p in SOURCE.rglob("*.py") if "paceline.training.packages" in p.read_text()}
    assert {path.split("/")[0] for path in users} == {"training"}
