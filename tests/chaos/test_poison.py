"""Gradients that a node computes wrongly, once: it is found out, and the model does not show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import paceline as pl
from paceline.grid import Grid
from paceline.testing.sabotage import Sabotage, Sabotaged

from helpers import running_master, wait_until
from points import EPOCHS, job_of, slow
from workloads import Rested, digits, spec

TOP_EXPONENT_BIT = 1 << 30


@pytest.fixture
def two_places(tmp_path: Path) -> Iterator[pl.Client]:
    """A client of a master with two nodes of one place each, of which a test may lose one."""
    with running_master(tmp_path / "master", agents=2, cores=1) as client:
        wait_until(lambda: len(client.nodes()) == 2)
        yield client


def flip(gradient: torch.Tensor) -> None:
    """One bit: a small number becomes one of 1e36 or so."""
    gradient.view(-1)[:1].view(torch.int32).bitwise_xor_(TOP_EXPONENT_BIT)


def enlarge(gradient: torch.Tensor) -> None:
    gradient.mul_(1e12)


def undefine(gradient: torch.Tensor) -> None:
    gradient[0] = float("nan")


def spoil(fault: Sabotage, how: Callable[[torch.Tensor], None], parameter: torch.nn.Parameter) -> None:
    try:
        fault()
    except Sabotaged:
        assert parameter.grad is not None
        how(parameter.grad)


def spoilt(fault: Sabotage, how: Callable[[torch.Tensor], None]) -> torch.nn.Module:
    model = Rested()
    model.last.weight.register_post_accumulate_grad_hook(partial(spoil, fault, how))
    return model


def quarantined(job: pl.Job) -> list[dict[str, Any]]:
    return [event.data for event in job.events() if event.kind == "node_quarantined"]


@pytest.mark.parametrize("how", [flip, undefine, *slow(enlarge)])
def test_a_node_that_computes_wrongly_is_named_with_the_evidence_and_used_no_more(
    two_places: pl.Client,
    sabotage: Callable[..., Sabotage],
    ends_well: Callable[[pl.Job], pl.Result],
    how: Callable[[torch.Tensor], None],
) -> None:
    fault = sabotage(act="raise", at_pass=120)
    job = two_places.submit(job_of(2, model=partial(spoilt, fault, how)))
    ends_well(job)
    (found,) = quarantined(job)
    assert found["reported"]["digest"] != found["computed"]["digest"]
    assert float(found["computed"]["norm"]) < 100
    assert [node.name for node in two_places.nodes() if node.quarantined] == [found["node"]]
    assert found["node"] not in [worker.node_name for worker in job.plan.workers]
    with pytest.raises(pl.Unplaceable, match="in quarantine"):
        two_places.submit(job_of(1, resources=pl.Resources(nodes=(found["node"],))))


def test_a_lone_worker_that_computes_wrongly_is_found_out_and_its_job_ends_on_another_node(
    two_places: pl.Client, sabotage: Callable[..., Sabotage], ends_well: Callable[[pl.Job], pl.Result]
) -> None:
    job = two_places.submit(job_of(1, model=partial(spoilt, sabotage(act="raise", at_pass=200), enlarge)))
    ends_well(job)
    assert len(quarantined(job)) == 1
    assert job.info()["attempt"] == 2


def test_a_gradient_that_is_large_by_the_data_is_confirmed_and_changes_nothing(client: pl.Client) -> None:
    (x, y), _ = digits()
    x = x.copy()
    x[Grid(len(x), 64, 8, False, seed=0).cell_samples(step=15, cell=3)[0]] = np.float32(1e6)
    fields = {"train_data": (x, y), "clip_grad_norm": 1.0, "stop": pl.MaxEpochs(EPOCHS)}
    jobs = [client.submit(spec(workers=workers, **fields)) for workers in (1, 2)]
    assert len({job.result(timeout=120).digest for job in jobs}) == 1
    for job in jobs:
        assert "gradient_confirmed" in [event.kind for event in job.events()]
        assert quarantined(job) == []
