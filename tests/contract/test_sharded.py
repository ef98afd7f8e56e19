"""Sharded training: the losses of exact training within float error, on any number of workers, whatever is killed."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors import safe_open

import paceline as pl
from paceline.engine.copies import MEMORY, PREFIX
from paceline.training.sharded.copies import PLAIN

from helpers import running_master, steps_of_the_last_attempt, wait_until
from workloads import Cnn, Transformer, spec

CLOSE = 2e-3
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
CALM = partial(torch.optim.AdamW, lr=3e-3, eps=1e-3)  # a small eps blows rounding up where gradients are near zero
SLOW = partial(torch.optim.SGD, lr=0.005)  # for long jobs: the made-up data are not learned by heart


def transformer() -> Transformer:
    """Two layers of more than a MiB: each is a unit."""
    torch.manual_seed(0)
    return Transformer(192)


def builder() -> Transformer:
    return Transformer(192)


def sharded(model: Any, workers: int, **changes: Any) -> pl.TrainSpec:
    return spec(
        model,
        workers=workers,
        sync="sharded",
        **{"batch_size": 96, "microbatches": 4, "clip_grad_norm": 1.0, **changes},
    )


def values(result: pl.Result) -> list[dict[str, float]]:
    return [{name: entry[name] for name in ("step", "loss", "val_loss")} for entry in result.history]


def assert_same_course(result: pl.Result, expected: pl.Result) -> None:
    assert len(result.history) == len(expected.history)
    for found, wanted in zip(values(result), values(expected), strict=True):
        assert found == pytest.approx(wanted, rel=CLOSE)
    assert {(row["committed"] - row["expected"], row["twice"]) for row in result.ledger} == {(0, 0)}


def copied(job: pl.Job) -> int:
    """The last step whose copies are whole on three nodes."""
    whole = [int(path.parent.name) for path in MEMORY.glob(f"{PREFIX}*/{job.id}/*/{PLAIN}")]
    return max((step for step, nodes in Counter(whole).items() if nodes == 3), default=0)


def checkpointed(job: pl.Job) -> int:
    """The last step that the master has a checkpoint of."""
    return max((event.data["step"] for event in job.events_so_far() if event.kind == "checkpoint"), default=0)


@pytest.fixture(scope="module")
def exact(client: pl.Client) -> pl.Result:
    """The same job, unsharded, on one worker of another master."""
    unsharded = spec(
        transformer(), workers=1, batch_size=96, microbatches=4, clip_grad_norm=1.0, optimizer=SGD, eval_every=5
    )
    return client.submit(unsharded).result(timeout=120)


@pytest.mark.parametrize(
    "cluster", ["local", pytest.param("ray", marks=(pytest.mark.ray, pytest.mark.slow))], indirect=True
)
def test_sharded_training_equals_exact_training_within_float_error(cluster: pl.Client, exact: pl.Result) -> None:
    """With dropout: its seeds are the microbatches'. Both ways of optimizing, over nodes of both engines."""
    result = cluster.submit(sharded(transformer(), 3, optimizer=SGD, eval_every=5)).result(timeout=180)
    assert result.plan.mode == "sharded"
    assert_same_course(result, exact)
    for name, tensor in exact.state_dict.items():
        torch.testing.assert_close(result.state_dict[name], tensor, rtol=1e-2, atol=1e-3)
    assert not result.reproducible
    assert "float error" in (result.irreproducible_because or "")


def test_the_model_comes_back_in_hugging_faces_layout(client: pl.Client) -> None:
    result = client.submit(sharded(transformer(), 2, stop=pl.MaxSteps(1))).result(timeout=120)
    index = json.loads((result.path / "model.safetensors.index.json").read_text())
    tensors = {}
    for name, file in index["weight_map"].items():
        with safe_open(result.path / file, framework="pt") as opened:
            tensors[name] = opened.get_tensor(name)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert set(tensors) == set(transformer().state_dict())
    model = result.model
    assert isinstance(model, Transformer)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[name])


@pytest.mark.slow
def test_a_builders_values_do_not_depend_on_the_number_of_workers(client: pl.Client) -> None:
    """Adam's state, batch-norm's statistics and an uneven last batch are in it."""
    one, three = (
        client.submit(sharded(builder, workers, stop=pl.MaxEpochs(1), eval_every=5)).result(timeout=120)
        for workers in (1, 3)
    )
    assert_same_course(three, one)
    with_statistics = [client.submit(sharded(Cnn, workers, microbatches=6)).result(timeout=120) for workers in (1, 2)]
    assert_same_course(*with_statistics)
    first, second = (result.state_dict["norm1.running_var"] for result in with_statistics)
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


LONG = {"stop": pl.MaxEpochs(3), "checkpoint_every": 10, "eval_every": 15}


@pytest.mark.slow
def test_a_killed_worker_and_all_of_them_cost_neither_losses_nor_samples(cluster: pl.Client) -> None:
    expected = cluster.submit(sharded(builder, 2, **LONG)).result(timeout=180)
    for victims in (1, 2):
        job = cluster.submit(sharded(builder, 2, **LONG))
        wait_until(lambda job=job: any(worker["last_step"] >= 25 for worker in job.workers()), 120)
        for worker in job.workers()[:victims]:
            os.kill(worker["pid"], signal.SIGKILL)
        result = job.result(timeout=180)
        assert_same_course(result, expected)
        resumed = [event.data for event in job.events() if event.kind == "attempt_lost"]
        assert len(resumed) == 1
        assert job.info()["attempt"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["local"], indirect=True)
def test_a_killed_worker_costs_the_steps_since_the_last_copies_and_no_checkpoint_is_read(cluster: pl.Client) -> None:
    """No checkpoint is written before the end: all that is left lies in the nodes' memory."""
    long = {"stop": pl.MaxEpochs(2), "eval_every": 15, "checkpoint_every": 10_000}
    expected = cluster.submit(sharded(builder, 1, **long)).result(timeout=180)
    job = cluster.submit(sharded(builder, 3, **long))
    assert "hold copies of shards" in job.plan.summary
    wait_until(lambda: any(worker["last_step"] >= 12 for worker in job.workers()), 120)
    os.kill(job.workers()[1]["pid"], signal.SIGKILL)
    result = job.result(timeout=180)
    assert_same_course(result, expected)
    events = list(job.events())
    assert not [event for event in events if event.kind == "checkpoint"]
    (resumed,) = [event.data for event in events if event.kind == "resumes"]
    assert resumed["step"] > 0
    assert len(resumed["nodes"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("gone", [1, 2])
def test_a_lost_node_costs_the_steps_since_the_copies_and_two_neighbours_those_since_the_checkpoint(
    gone: int, tmp_path: Path
) -> None:
    """Of three nodes with a shard each: what one held, its neighbour has; of two neighbours, one shard is nowhere."""
    long = {"stop": pl.MaxEpochs(12), "eval_every": 60, "checkpoint_every": 20, "optimizer": SLOW}
    with running_master(tmp_path, agents=3, cores=4) as client:
        wait_until(lambda: len(client.nodes()) == 3)
        expected = client.submit(sharded(builder, 1, **long)).result(timeout=180)
        job = client.submit(sharded(builder, 3, **long))
        wait_until(lambda: copied(job) > checkpointed(job) > 0, 120)
        agents = [psutil.Process(worker["pid"]).parent().parent() for worker in job.workers()]
        for agent in agents[:gone]:
            agent.kill()
        before = checkpointed(job)
        result = job.result(timeout=180)
        assert_same_course(result, expected)
        events = list(job.events())
    (resumed,) = [event.data for event in events if event.kind == "resumes"]
    assert resumed["step"] > before
    lost = [(event.data["step"], event.data["resumes_from"]) for event in events if event.kind == "copies_lost"]
    assert lost == ([] if gone == 1 else [(resumed["step"], before)])


@pytest.mark.slow
def test_a_checkpoint_is_cut_anew_for_more_and_for_fewer_workers(client: pl.Client) -> None:
    """From two workers to three, and to one, with the best model so far on the way."""
    long = {**LONG, "keep": "best:val_loss", "optimizer": CALM}
    expected = client.submit(sharded(builder, 2, **long)).result(timeout=180)
    for workers in (3, 1):
        job = client.submit(sharded(builder, 2, **long))
        wait_until(lambda job=job: any(worker["last_step"] >= 25 for worker in job.workers()), 120)
        job.scale(workers)
        result = job.result(timeout=180)
        assert len(result.plan.workers) == workers
        assert job.info()["attempt"] == 2
        assert {event.kind for event in job.events()}.isdisjoint({"checkpoint_lost", "copies_lost"})
        assert steps_of_the_last_attempt(job)[0] >= 10  # it went on from what was cut, not from the start
        assert_same_course(result, expected)
        assert result.step == expected.step


def test_a_model_that_fits_nowhere_is_refused_with_numbers_and_a_remedy(client: pl.Client) -> None:
    def huge() -> torch.nn.Module:
        return torch.nn.Sequential(*(torch.nn.Linear(2**16, 2**16, bias=False) for _ in range(64)))

    with pytest.raises(pl.Unplaceable, match=r"4096.0 GiB of parameters, gradients and optimizer .* Add nodes"):
        client.submit(sharded(huge, 2))
