"""The model's way into the user's hands."""

from __future__ import annotations

import copy
import json
import time
from functools import partial

import pytest
import torch

import paceline as pl

from helpers import wait_until
from workloads import Cnn, mlp, spec


def test_the_models_tensors_are_those_that_the_digest_names(client: pl.Client) -> None:
    given = mlp()
    before = copy.deepcopy(given.state_dict())
    job = client.submit(spec(given))
    result = job.result(timeout=60)
    model = result.model
    assert isinstance(model, torch.nn.Sequential)
    assert model is not given
    for name, tensor in given.state_dict().items():  # the user's own is as it was
        assert torch.equal(tensor, before[name])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, result.state_dict[name])
    assert json.loads(json.dumps(result.history)) == result.history
    assert result.versions["torch"] == torch.__version__
    (node,) = client.nodes()
    assert result.hardware_class == node.hardware_class
    assert result.hardware_class.endswith(f"torch-{torch.__version__}")
    assert job.info()["delivered_at"] is not None


def test_a_model_that_was_not_fetched_is_not_marked_delivered(client: pl.Client) -> None:
    job = client.submit(spec())
    assert job.wait(timeout=60) == "SUCCEEDED"
    assert job.info()["delivered_at"] is None


def test_bytes_that_do_not_match_the_digest_are_refused_and_not_acknowledged(client: pl.Client) -> None:
    job = client.submit(spec())
    job.wait(timeout=60)
    found = {**client.get(f"/jobs/{job.id}/result"), "digest": "sha256:" + "0" * 64}
    path = client.models / "wrong.safetensors"
    with pytest.raises(pl.Corrupt, match="digest"):
        job.fetch(path, found)
    assert not path.exists()
    assert job.info()["delivered_at"] is None


@pytest.mark.slow
def test_the_best_model_is_delivered_where_that_is_asked_for(client: pl.Client) -> None:
    overfit = {"optimizer": partial(torch.optim.SGD, lr=2.0), "stop": pl.MaxEpochs(6)}
    best = client.submit(spec(keep="best:val_loss", **overfit)).result(timeout=60)
    values = [entry["val_loss"] for entry in best.history]
    assert best.metrics["val_loss"] == min(values)
    again = client.submit(spec(stop=pl.MaxSteps(best.step), optimizer=overfit["optimizer"])).result(timeout=60)
    assert again.digest == best.digest


def test_the_result_waits_no_longer_than_it_was_told_to(client: pl.Client) -> None:
    job = client.submit(spec(partial(Cnn, 16), stop=pl.MaxEpochs(500)))
    started = time.monotonic()
    with pytest.raises(pl.WaitTimeout):
        job.result(timeout=0.5)
    assert time.monotonic() - started < 10  # and not until the next sign of life, nor for ever
    job.cancel()
    wait_until(lambda: job.state == "CANCELLED")


def test_a_plan_runs_and_stores_nothing(client: pl.Client) -> None:
    before = len(client.jobs())
    plan = client.plan(spec=spec(mlp(), workers=2))
    assert [worker.share for worker in plan.workers] == [(0, 4), (4, 8)]
    assert client.nodes()[0].name in plan.explain()
    assert len(client.jobs()) == before
