"""What the probe foretells of memory, beside what a worker that trains then takes. More models: `planner_memory.py`."""

from __future__ import annotations

import pytest
from planner_memory import CASES, bare_worker, measured, predicted

import paceline as pl


@pytest.fixture(scope="module")
def bare(client: pl.Client) -> int:
    return bare_worker(client)


@pytest.mark.parametrize("name", ["cnn", "lstm"])
@pytest.mark.slow
def test_the_probe_foretells_what_a_worker_grows_by_within_15_percent(client: pl.Client, bare: int, name: str) -> None:
    row = predicted(client, CASES[name])
    assert row["worker_bytes"] == pytest.approx(measured(client, CASES[name], row, bare), rel=0.15)
