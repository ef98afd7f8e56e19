"""A job that is scaled while it does not run: the wish is kept, and followed when it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import paceline as pl

from helpers import running_master, wait_until
from workloads import spec

ENDLESS: dict[str, Any] = {"stop": pl.MaxEpochs(1_000_000)}


@pytest.mark.slow
def test_a_queued_job_is_scaled_when_its_turn_comes_even_under_the_next_master(
    tmp_path: Path, client: pl.Client
) -> None:
    expected = client.submit(spec(workers=1)).result(timeout=60).digest
    with running_master(tmp_path, cores=1) as first:
        running = first.submit(spec(workers=1, **ENDLESS))
        wait_until(lambda: running.state == "RUNNING")
        job = first.submit(spec(workers=1))
        job.scale(2)
        wait_until(lambda: any(event.kind == "scaled" for event in job.events_so_far()))
        assert job.state == "QUEUED"
    with running_master(tmp_path, cores=6) as second:
        result = second.job(job.id).result(timeout=60)
        assert result.digest == expected
        assert len(result.plan.workers) == 2
        assert "2 of the 2 workers that the job was scaled to" in result.plan.summary
        second.job(running.id).cancel()


def test_the_workers_of_a_running_job_are_shown_with_their_shares_of_now(client: pl.Client) -> None:
    job = client.submit(spec(workers=1, **ENDLESS))
    wait_until(lambda: job.state == "RUNNING")
    job.scale(2)

    def cover_the_grid() -> bool:
        first, *others = sorted(tuple(worker["share"]) for worker in job.workers())
        return len(others) == 1 and (first[0], others[0]) == (0, (first[1], 8)) and first[1] not in (0, 8)

    wait_until(cover_the_grid)
    job.cancel()


def test_more_workers_than_microbatches_and_a_job_that_has_ended_are_refused(client: pl.Client) -> None:
    job = client.submit(spec(workers=1))
    with pytest.raises(pl.InvalidSpec, match="8 microbatches"):
        job.scale(9)
    job.result(timeout=60)
    with pytest.raises(pl.Conflict, match="SUCCEEDED"):
        job.scale(2)
