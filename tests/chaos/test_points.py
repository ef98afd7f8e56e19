"""A fault at each point of a step: the job ends in the reference digest, with every sample once per epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import paceline as pl
from paceline.testing.sabotage import Sabotage

from points import at, job_of

MS = 0.001
# Forward and backward pass once for each cell of a worker's share (8 cells a step in all); the optimizer once a step.
KILLS: list[tuple[str, dict[str, Any]]] = [
    ("read", {"at_pass": 300}),
    ("forward", {"at_pass": 150, "times": 2}),
    ("backward", {"at_pass": 101, "times": 2}),
    *(("backward_end", {"at_pass": 160, "delay_s": ms * MS}) for ms in (0.5, 2)),
    ("update", {"at_pass": 30}),
    ("updated", {"at_pass": 23}),  # an epoch's last step: its evaluation follows
    ("metric", {"at_pass": 4, "times": 2}),
]
MORE: list[tuple[str, dict[str, Any]]] = [
    ("build", {"spared": 1}),
    ("read", {"at_pass": 300, "act": "kill_group"}),
    ("augment", {"at_pass": 900}),
    ("forward", {"at_pass": 1}),
    ("backward_end", {"at_pass": 104}),
    ("update", {"at_pass": 1}),
    ("updated", {"at_pass": 30}),
    ("metric", {"at_pass": 2}),
    *(("backward_end", {"at_pass": 160, "delay_s": ms * MS}) for ms in (0.2, 1, 4)),
    *(
        ("backward_end", {"at_pass": at_pass, "delay_s": ms * MS})
        for at_pass in (52, 99, 203)
        for ms in range(0, 12, 2)
    ),
    *(("updated", {"at_pass": at_pass, "delay_s": ms * MS}) for at_pass in (1, 22, 23, 46) for ms in (0.5, 1, 3)),
    *((point, {"at_pass": n, "times": 3}) for point in ("forward", "backward", "backward_end") for n in (64, 65, 68)),
    *(("update", {"at_pass": n, "times": 3}) for n in (2, 20, 24)),
    *(("metric", {"at_pass": n, "times": 3}) for n in (1, 2, 3)),
]


def named(case: tuple[str, dict[str, Any]]) -> str:
    return "-".join([case[0], *(f"{name}={value}" for name, value in case[1].items())])


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=named(case)) for case in KILLS),
        *(pytest.param(case, id=named(case), marks=pytest.mark.slow) for case in MORE),
    ],
)
def test_a_kill_at_this_point_changes_neither_the_digest_nor_the_ledger(
    cluster: pl.Client,
    ends_well: Callable[[pl.Job], pl.Result],
    sabotage: Callable[..., Sabotage],
    case: tuple[str, dict[str, Any]],
) -> None:
    point, fields = case
    fault = sabotage(**fields)
    ends_well(cluster.submit(job_of(3, **at(point, fault))))
    assert fault.struck() == fault.times
