"""Workers that live and do nothing: each is named with its last stack, ended and replaced."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

import paceline as pl
from paceline.errors import UserCodeError
from paceline.testing.sabotage import Sabotage

from points import at, job_of, slow

EndsWell = Callable[[pl.Job], pl.Result]
Sabotages = Callable[..., Sabotage]
REST_S = 0.01  # so that a worker has been heard, which it is once a second, before it hangs: its last stack is known
HANGS: dict[str, tuple[str, dict[str, Any]]] = {
    "in forward, stopped": ("forward", {"act": "hang", "at_pass": 180}),
    "in forward, deadlocked": ("forward", {"act": "deadlock", "at_pass": 180}),
    "in backward, deadlocked": ("backward", {"act": "deadlock", "at_pass": 180}),
    "in an exchange, stopped": ("backward_end", {"act": "hang", "at_pass": 180, "delay_s": 0.002}),
    "before an update, deadlocked": ("update", {"act": "deadlock", "at_pass": 70}),
    "after an update, stopped": ("updated", {"act": "hang", "at_pass": 70}),
    "in an evaluation, deadlocked": ("metric", {"act": "deadlock", "at_pass": 7}),
    "in an evaluation, stopped": ("metric", {"act": "hang", "at_pass": 7}),
    "in a data loader, stopped": ("read", {"act": "hang", "at_pass": 600}),
    "in a data loader, deadlocked": ("augment", {"act": "deadlock", "at_pass": 600}),
}


def ends_well_with_a_named_loss(job: pl.Job, ends_well: EndsWell) -> None:
    ends_well(job)
    (lost,) = [event.data for event in job.events() if event.kind == "worker_lost"]
    rank, node = lost["rank"], lost["node"]
    assert re.match(
        rf"rank {rank} on {node} is lost: .* for more than \d+ s; last seen at \w+\.py:\d+ ", lost["reason"]
    )


def test_workers_that_hang_in_a_step_or_in_a_data_loader_are_named_and_replaced(
    cluster: pl.Client, ends_well: EndsWell, sabotage: Sabotages
) -> None:
    faults = {
        "forward": sabotage(act="hang", at_pass=180),
        "read": sabotage(act="deadlock", at_pass=600),
    }
    rests = {"forward": {"rest_s": REST_S}, "read": {}}
    jobs = [cluster.submit(job_of(3, **at(point, fault, **rests[point]))) for point, fault in faults.items()]
    for job in jobs:
        ends_well_with_a_named_loss(job, ends_well)
    assert [fault.struck() for fault in faults.values()] == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("point", HANGS)
def test_a_worker_that_hangs_is_named_with_its_stack_and_replaced(
    cluster: pl.Client, ends_well: EndsWell, sabotage: Sabotages, point: str
) -> None:
    where, fields = HANGS[point]
    fault = sabotage(**fields)
    ends_well_with_a_named_loss(cluster.submit(job_of(3, **at(where, fault, rest_s=REST_S))), ends_well)
    assert fault.struck() == 1


@pytest.mark.parametrize("point", ["read", *slow("update")])
def test_an_exception_in_one_worker_is_the_users_and_is_not_retried(
    cluster: pl.Client, sabotage: Sabotages, point: str
) -> None:
    fault = sabotage(act="raise", at_pass=30)
    job = cluster.submit(job_of(3, **at(point, fault)))
    with pytest.raises(UserCodeError, match="struck by a fault"):
        job.result(60)
    assert job.info()["attempt"] == 1
