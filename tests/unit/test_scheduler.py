"""The scheduler performs the queue's decisions: jobs start, leave and wait as the policy says, and are told why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import paceline as pl
from paceline.master.committed import Training
from paceline.master.events import CancelRequested
from paceline.master.job import Job
from paceline.master.placing import seconds_left
from paceline.planner.queue import Policy, Quota

from builders import submission
from scenes import Scene, started, until

ENDLESS = pl.MaxSteps(1_000_000)


def test_a_job_of_higher_priority_preempts_one_at_its_commit_which_then_goes_on(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Policy(min_run_s=0.0))

    async def act() -> None:
        sent = scene.staff("n0")
        low = await scene.submit("low", stop=ENDLESS)
        scene.serve()
        await until(lambda: scene.store.job(low).training.get("step", 0) > 3)
        high = await scene.submit("high", stop=ENDLESS, priority=5)
        await until(lambda: started(sent) == [low, high])
        (event,) = [e for e in scene.store.events(low, after=0) if e.kind == "preempted"]
        assert f"preempted by {high} of priority 5" in event.data["reason"]
        row = scene.store.job(low)
        assert row.state == "WAITING"
        assert row.checkpoints is not None
        assert row.checkpoints[0]["ref"]["step"] == row.training["step"] == scene.store.commits(low)[-1].to_step
        await until(lambda: low in scene.controller.scheduler.waits)
        scene.controller.post(high, CancelRequested())
        await until(lambda: started(sent) == [low, high, low])
        await until(lambda: scene.store.job(low).training["step"] > row.training["step"])
        commits = [(commit.from_step, commit.to_step) for commit in scene.store.commits(low)]
        assert all(end == first for (_, end), (first, _) in zip(commits, commits[1:], strict=False))

    scene.play(act)


def test_an_equal_priority_waits_is_told_its_place_and_starts_when_the_other_has_ended(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Policy(min_run_s=0.0))

    async def act() -> None:
        sent = scene.staff("n0")
        first = await scene.submit("first", stop=ENDLESS | pl.MaxTime("1h"))
        scene.serve()
        await until(lambda: scene.store.job(first).state == "RUNNING")
        second, third = await scene.submit("second", stop=ENDLESS), await scene.submit("third", stop=ENDLESS)
        await scene.controller.scheduler.looked_at(third, 10.0)
        waits = scene.controller.scheduler.waits
        assert [waits[job].place for job in (second, third)] == [1, 2]
        assert (waits[third].start_in_s or 0) > 3600  # as long as the second's steps are predicted to take
        assert 3500 < (waits[second].start_in_s or 0) <= 3600
        assert f"once {first} has ended" in waits[second].reason
        scene.controller.post(first, CancelRequested())
        await until(lambda: started(sent) == [first, second])
        await until(lambda: list(scene.controller.scheduler.waits) == [third])

    scene.play(act)


def test_a_quota_of_jobs_holds_its_user_only(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Policy(quotas={"bob": Quota(jobs=1, priority=2)}))

    async def act() -> None:
        sent = scene.staff("n0", cores=3)
        jobs = [
            await scene.submit(name, user, stop=ENDLESS) for name, user in (("a", "bob"), ("b", "bob"), ("c", "ann"))
        ]
        scene.serve()
        await until(lambda: started(sent) == [jobs[0], jobs[2]])
        await scene.controller.scheduler.looked_at(jobs[1], 10.0)
        assert "quota of bob is used up: 1 of 1 jobs" in scene.controller.scheduler.waits[jobs[1]].reason
        with pytest.raises(pl.Forbidden, match="may ask for 2 at most"):
            await scene.submit("urgent", "bob", priority=3)
        scene.controller.post(jobs[0], CancelRequested())
        await until(lambda: started(sent) == [jobs[0], jobs[2], jobs[1]])

    scene.play(act)


def test_what_a_quota_never_allows_is_refused_at_once(tmp_path: Path) -> None:
    scene = Scene(tmp_path, Policy(quotas={"*": Quota(cores=2)}))

    async def act() -> None:
        scene.join("n0", cores=8)
        scene.serve()
        with pytest.raises(pl.Unplaceable, match=r"the quota of ann is 2 cores") as caught:
            await scene.submit("large", "ann", batch_size=64, microbatches=8, resources=pl.Resources(workers=3))
        assert "at most 2 workers" in caught.value.remedy
        assert scene.store.jobs() == []

    scene.play(act)


def test_a_restarted_master_remembers_what_users_had(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    async def before() -> None:
        scene.staff("n0")
        job = await scene.submit("job", "ann", stop=ENDLESS)
        scene.serve()
        await until(lambda: scene.store.job(job).training.get("step", 0) > 3)
        scene.controller.post(job, CancelRequested())
        await until(lambda: scene.store.job(job).state == "CANCELLED")

    scene.play(before)
    again = Scene(tmp_path)

    async def after() -> None:
        sent = again.staff("n0")
        first, second = (
            await again.submit("of ann", "ann", stop=ENDLESS),
            await again.submit("of bob", "bob", stop=ENDLESS),
        )
        again.serve()
        await until(lambda: bool(started(sent)))
        assert started(sent) == [second], f"{first} is ahead of a user who had nothing yet"

    again.play(after)


@pytest.mark.parametrize(
    ("stop", "seconds", "before_a_step"),
    [
        (pl.MaxSteps(50), 40.0, None),  # 10 steps took 10 s
        (pl.MaxEpochs(4), 10.0, None),  # of 5 steps
        (pl.MaxEpochs(4) | pl.MaxTime(15), 5.0, 15.0),
        (pl.Metric("loss", at_most=0.1) | pl.MaxTime("1m"), 50.0, 60.0),
        (pl.MaxTime("1m") & pl.MaxSteps(50), None, None),
    ],
)
def test_a_jobs_end_is_predicted_by_its_own_pace_and_what_surely_stops_it(
    stop: pl.MaxSteps, seconds: float | None, before_a_step: float | None
) -> None:
    job = Job("job", submission(val=False, batch_size=4, stop=stop), elapsed_s=10.0)
    ran = replace(job, training=Training(step=10, train_samples=20))
    assert seconds_left(ran, now=0.0) == seconds
    assert seconds_left(replace(job, elapsed_s=0.0), now=0.0) == before_a_step  # by time alone
