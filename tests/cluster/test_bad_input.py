"""What bad input gets: fact, numbers, remedy, code; and nothing half-done."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

import paceline as pl
from paceline.client.embedded import start_master
from paceline.client.submission import prepare
from paceline.settings import MasterSettings
from paceline.transfer import BlobStore, sha256

from helpers import running_master
from workloads import accuracy, digits, mlp, spec


class Locked(torch.nn.Module):
    """Holds what can't travel, two levels down."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(64, 10)
        self.encoder.cache = {"guard": threading.Lock()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x)


class Exploding(torch.nn.Module):
    """Finite for three steps, then its second layer is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(64, 32)
        self.second = torch.nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x) / (x.abs().sum(1, keepdim=True) > 0))


class Raises(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("the user's own mistake")


class Counts(torch.nn.Module):
    """Changes a buffer in forward that is no batch-norm statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layer(x)


def fails(client: pl.Client, changed: pl.TrainSpec) -> pl.PacelineError:
    """The error with which this job ends."""
    with pytest.raises(pl.PacelineError) as caught:
        client.submit(changed).result(timeout=60)
    assert caught.value.remedy
    return caught.value


def test_an_unpicklable_model_is_refused_with_the_path_to_the_culprit(client: pl.Client) -> None:
    before = len(client.jobs())
    error = fails(client, spec(Locked()))
    assert isinstance(error, pl.Unpicklable)
    assert error.details["path"] == "model.encoder.cache.guard"
    assert len(client.jobs()) == before


def test_a_model_without_parameters_is_refused(client: pl.Client) -> None:
    assert "no parameters" in fails(client, spec(torch.nn.ReLU())).fact
    assert "no parameters" in fails(client, spec(lambda: torch.nn.ReLU())).fact


def test_data_of_unequal_lengths_is_refused_with_the_lengths(client: pl.Client) -> None:
    (x, y), _ = digits()
    error = fails(client, spec(train_data=(x, y[:-3])))
    assert error.code == "invalid_spec"
    assert "1437, 1434" in error.fact


def test_empty_data_is_refused(client: pl.Client) -> None:
    (x, y), _ = digits()
    assert "empty" in fails(client, spec(train_data=(x[:0], y[:0]))).fact


def test_a_batch_larger_than_the_data_is_refused_at_the_client_and_on_the_node(client: pl.Client) -> None:
    (x, y), _ = digits()
    assert "2000" in fails(client, spec(batch_size=2000)).fact
    built = fails(
        client, spec(train_data=lambda: torch.utils.data.TensorDataset(*map(torch.tensor, (x, y))), batch_size=2000)
    )
    assert "2000" in built.fact


def test_a_loss_that_is_not_a_scalar_is_refused_with_its_shape(client: pl.Client) -> None:
    error = fails(client, spec(loss=partial(torch.nn.functional.cross_entropy, reduction="none")))
    assert error.code == "invalid_spec"
    assert "(8,)" in error.fact


def test_a_loss_without_a_gradient_is_refused_and_says_why(client: pl.Client) -> None:
    error = fails(client, spec(loss=lambda outputs, targets: accuracy(outputs, targets)))
    assert error.code == "invalid_spec"
    assert "does not depend on the model's parameters" in error.fact


def test_a_metric_that_is_no_number_is_refused_with_its_name_and_type(client: pl.Client) -> None:
    error = fails(client, spec(metrics={"accuracy": accuracy, "kind": lambda outputs, targets: "good"}))
    assert error.code == "invalid_spec"
    assert "'kind' returned a str" in error.fact


@pytest.mark.parametrize("workers", [1, 2])
def test_nan_names_the_step_the_samples_and_the_first_layer(client: pl.Client, workers: int) -> None:
    (x, y), _ = digits()
    x = x.copy()
    x[700] = 0.0
    error = fails(client, spec(Exploding(), train_data=(x, y), workers=workers))
    assert isinstance(error, pl.NonFinite)
    assert 700 in error.details["samples"]
    assert error.details["layer"] == "layer 'second'"
    assert f"step {error.details['step']}" in error.fact


def test_nan_in_the_data_is_told_from_nan_in_the_model(client: pl.Client) -> None:
    (x, y), _ = digits()
    x = x.copy()
    x[3, 5] = np.nan
    error = fails(client, spec(train_data=(x, y)))
    assert error.details["layer"] == "the input"
    assert 3 in error.details["samples"]


def test_the_users_exception_comes_back_with_their_own_traceback(client: pl.Client) -> None:
    error = fails(client, spec(Raises()))
    assert isinstance(error, pl.UserCodeError)
    assert error.details["type"] == "KeyError"
    assert 'raise KeyError("the user\'s own mistake")' in error.traceback
    assert "paceline/training" not in error.traceback.split("Raises")[0]


class OfText(torch.utils.data.Dataset[Any]):
    """One of its samples was never encoded."""

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.zeros(64), int("cat" if index == 123 else "3")


def test_an_exception_in_a_data_loader_is_told_as_the_users_own(client: pl.Client) -> None:
    error = fails(client, spec(train_data=OfText()))
    assert isinstance(error, pl.UserCodeError)
    assert error.fact == "your code raised ValueError: invalid literal for int() with base 10: 'cat'"
    lines = error.traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert 'test_bad_input.py", line' in lines[1]
    assert "__getitem__" in lines[1]
    assert lines[-1] == "ValueError: invalid literal for int() with base 10: 'cat'"


def test_a_buffer_that_forward_changes_is_refused_by_name(client: pl.Client) -> None:
    assert "'calls'" in fails(client, spec(Counts())).fact


def test_an_unknown_metric_in_a_stop_condition_is_refused_with_the_known_ones() -> None:
    with pytest.raises(pl.InvalidSpec, match="val_accuracy") as caught:
        spec(stop=pl.MaxEpochs(1) | pl.Metric("val_acuracy", at_least=0.9))
    assert "val_acuracy" in caught.value.fact


def test_resources_that_no_node_has_are_refused_with_needs_and_best_node(client: pl.Client) -> None:
    before = len(client.jobs())
    error = fails(client, spec(resources=pl.Resources(workers=1, memory="100TiB")))
    assert isinstance(error, pl.Unplaceable)
    assert "102400.0 GiB" in error.fact
    assert client.nodes()[0].name in error.fact
    assert len(client.jobs()) == before


class Spoils(torch.optim.SGD):
    """What becomes infinite in the last update is in no loss and no gradient."""

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(float("inf"))


@pytest.mark.parametrize("sync", ["exact", "sharded"])
def test_a_model_that_is_not_finite_after_its_last_step_is_not_delivered(client: pl.Client, sync: str) -> None:
    error = fails(
        client,
        spec(optimizer=partial(Spoils, lr=0.1), stop=pl.MaxSteps(1), val_data=None, metrics={}, workers=2, sync=sync),
    )
    assert isinstance(error, pl.NonFinite)
    assert "the model after step 1 is not finite: '0.weight' holds NaN or infinity" in error.fact


def test_more_workers_than_microbatches_are_refused_with_the_remedy(client: pl.Client) -> None:
    error = fails(client, spec(workers=9))
    assert error.code == "unplaceable"
    assert "microbatches=9" in error.remedy


def test_workers_that_build_different_data_are_told_apart_by_node(client: pl.Client, tmp_path: Path) -> None:
    (x, y), _ = digits()
    first = str(tmp_path / "first")

    def build() -> Any:
        import os

        try:
            os.close(os.open(first, os.O_CREAT | os.O_EXCL))
            start = 0
        except FileExistsError:
            start = 1
        return torch.utils.data.TensorDataset(
            torch.tensor(x[start : start + 1000]), torch.tensor(y[start : start + 1000])
        )

    error = fails(client, spec(train_data=build, workers=2))
    assert isinstance(error, pl.DataMismatch)
    assert f"rank 1 on {client.nodes()[0].name} has" in error.fact


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stop", {"kind": "max_epochs"}),
        ("stop", {"kind": "any", "conditions": [{"kind": "metric", "name": "val_loss"}]}),
        ("stop", None),
        ("batch_size", 10**400),
        ("priority", 2**63),
        ("resources", {"memory": "9" * 400}),
    ],
)
def test_a_malformed_body_is_an_invalid_spec_that_names_the_field(client: pl.Client, field: str, value: Any) -> None:
    body = prepare(spec()).submission.model_dump(mode="json")
    body["options"][field] = value
    for path in ("jobs", "jobs/plan"):
        response = client.http.post(f"/api/v1/{path}", json=body)
        assert (response.status_code, response.json()["code"]) == (422, "invalid_spec")
        assert field in response.json()["fact"]


@pytest.mark.parametrize("number", [-1, 10**30, "x"])
def test_a_place_that_can_not_be_is_refused_and_not_looked_for(client: pl.Client, number: Any) -> None:
    job = client.submit(spec(stop=pl.MaxSteps(1)))
    for query in (f"logs?offset={number}", f"events?after={number}", f"scale?workers={number}"):
        method = "POST" if query.startswith("scale") else "GET"
        response = client.http.request(method, f"/api/v1/jobs/{job.id}/{query}")
        assert (response.status_code, response.json()["code"]) == (422, "invalid_spec")
    job.result(timeout=60)


def test_a_wrong_token_is_refused(client: pl.Client) -> None:
    with pytest.raises(pl.Unauthorized) as caught:
        pl.Client(client.url, "wrong")
    assert caught.value.exit_code == 3


def test_the_token_of_one_master_is_never_sent_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PACELINE_TOKEN", "of 127.0.0.1:9")
    with pytest.raises(pl.Unauthorized, match=r"no token is known for http://127\.0\.0\.1:8"):
        pl.Client("http://127.0.0.1:8")
    with pytest.raises(pl.MasterUnreachable, match=r"127\.0\.0\.1:9"):
        pl.Client("http://127.0.0.1:9/")


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ({"url": "master:8470", "token": "any"}, "'master:8470' is not a master's address"),
        ({"local": True, "engine": "slurm"}, "engine='slurm': "),
        ({"local": True, "cores": 0}, "cores=0: "),
    ],
)
def test_a_client_that_can_not_be_is_refused_with_what_was_given(arguments: dict[str, Any], fact: str) -> None:
    with pytest.raises(pl.InvalidSpec) as caught:
        pl.Client(**arguments)
    assert fact in caught.value.fact


def test_a_master_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(pl.MasterUnreachable, match=r"127\.0\.0\.1:9"):
        pl.Client("http://127.0.0.1:9", "any")


def test_a_second_master_on_the_same_folder_is_refused_with_the_first_ones_process(tmp_path: Path) -> None:
    with running_master(tmp_path):
        with pytest.raises(pl.FolderInUse, match=r"process \d+"):
            start_master(MasterSettings(folder=tmp_path, port=0, parent_pipe=True))


def test_a_public_address_without_tls_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pl.InvalidSpec, match="in the clear"):
        start_master(MasterSettings(folder=tmp_path, host="0.0.0.0", port=0, parent_pipe=True))


class Torn(httpx.BaseTransport):
    """Breaks the connection in the middle of every second chunk, and of every answer after so many bytes."""

    def __init__(self, answers_after: int = 10**9) -> None:
        self._real = httpx.HTTPTransport()
        self._answers_after = answers_after
        self.sent = 0
        self.ranges: list[str | None] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            self.sent += 1
            if self.sent % 2:
                raise httpx.WriteError("broken", request=request)
        response = self._real.handle_request(request)
        if request.method == "GET":
            self.ranges.append(request.headers.get("range"))
            assert isinstance(response.stream, httpx.SyncByteStream)
            response.stream = BreaksOff(response.stream, self._answers_after)
        return response


class BreaksOff(httpx.SyncByteStream):
    """An answer's bytes, up to so many."""

    def __init__(self, whole: httpx.SyncByteStream, after: int) -> None:
        self._whole, self._left = whole, after

    def __iter__(self) -> Iterator[bytes]:
        for data in self._whole:
            yield data[: self._left]
            self._left -= len(data)
            if self._left < 0:
                raise httpx.ReadError("broken")

    def close(self) -> None:
        self._whole.close()


def test_a_torn_upload_resumes_and_arrives_whole(client: pl.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.transfer.CHUNK_BYTES", 100_000)
    data = np.random.default_rng(1).bytes(350_000)
    name = sha256(data)
    transport = Torn()
    with httpx.Client(base_url=client.url, headers=client.http.headers, transport=transport) as http:
        BlobStore(http, sleep=lambda _: None).upload(name, data)
    assert transport.sent == 8
    response = client.http.get(f"/api/v1/blobs/{name}")
    assert sha256(response.content) == name


def test_a_torn_download_goes_on_where_it_broke_and_is_whole_in_the_end(client: pl.Client, tmp_path: Path) -> None:
    data = np.random.default_rng(3).bytes(350_000)
    client.blobs.upload(sha256(data), data)
    transport = Torn(answers_after=100_000)
    with httpx.Client(base_url=client.url, headers=client.http.headers, transport=transport) as http:
        BlobStore(http, sleep=lambda _: None).download(sha256(data), tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == data
    assert transport.ranges == [None, "bytes=100000-", "bytes=200000-", "bytes=300000-"]
    assert list(tmp_path.iterdir()) == [tmp_path / "blob"]


def test_an_upload_of_other_bytes_than_its_name_says_is_refused(client: pl.Client) -> None:
    name = sha256(b"what was meant")
    with pytest.raises(pl.Corrupt):
        client.blobs.upload(name, b"what was sent")
    assert client.blobs.missing([name]) == {name}


def test_the_same_request_id_twice_is_one_job(client: pl.Client) -> None:
    job = spec()
    first = client.submit(job, request_id="once")
    second = client.submit(job, request_id="once")
    assert first.id == second.id
    assert first.result(timeout=60).digest == second.result(timeout=60).digest


def test_a_field_whose_part_comes_later_is_refused_not_ignored() -> None:
    with pytest.raises(pl.NotYetSupported):
        spec(sync="local")


def test_data_arrive_once_even_if_two_jobs_send_them(client: pl.Client) -> None:
    big = np.random.default_rng(2).normal(size=(4000, 64)).astype(np.float32)
    labels = np.zeros(4000, dtype=np.int64)
    sent: list[int] = []
    client.http.event_hooks["request"] = [lambda r: sent.append(int(r.headers.get("content-length", 0)))]
    try:
        client.submit(spec(train_data=(big, labels), stop=pl.MaxSteps(1))).result(timeout=60)
        once = sum(sent)
        sent.clear()
        client.submit(spec(mlp(1), train_data=(big, labels), stop=pl.MaxSteps(1))).result(timeout=60)
    finally:
        client.http.event_hooks["request"] = []
    assert once > big.nbytes
    assert sum(sent) < big.nbytes / 10


def test_a_torchmetrics_style_object_gives_the_same_value_on_any_number_of_workers(client: pl.Client) -> None:
    from torchmetrics.classification import MulticlassAccuracy

    metrics = {"accuracy": accuracy, "macro": MulticlassAccuracy(10, average="macro")}
    jobs = [client.submit(spec(metrics=metrics, workers=workers)) for workers in (1, 3)]
    values = [job.result(timeout=60).history[-1] for job in jobs]
    assert values[0] == values[1]
    assert 0.3 < values[0]["val_macro"] < 1.0
