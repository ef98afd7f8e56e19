"""The controller: events that come while another is being made durable are handled in their order."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from paceline.master.commands import Quarantine
from paceline.master.events import CancelRequested
from paceline.master.job import Job
from paceline.master.states import Queued
from paceline.master.store import ADMIN
from paceline.measured import CellTime
from paceline.messages.from_worker import Probed
from paceline.messages.to_agent import StartWorker, StopWorkers
from paceline.spec import Resources
from paceline.stop import MaxTime

from builders import GIB, plan_of, profile_of, submission
from scenes import Scene, started, until


def test_a_queued_job_cancelled_while_another_is_started_leaves_the_scheduler_at_work(tmp_path: Path) -> None:
    scene = Scene(tmp_path, held=True)

    async def act() -> None:
        sent, (first, second) = await scene.open("first", "second")
        scene.controller.post(second, CancelRequested())
        await asyncio.sleep(0.2)
        scene.store.go_on.set()
        third = await scene.submit("third")
        await until(lambda: third in started(sent))
        assert started(sent) == [first, third]

    scene.play(act)


def test_a_job_whose_node_leaves_while_it_is_planned_is_started_on_another(tmp_path: Path) -> None:
    scene = Scene(tmp_path, held=True)

    async def act() -> None:
        sent, (job,) = await scene.open("job")
        scene.controller.node_left("n0")
        scene.store.go_on.set()
        await until(lambda: scene.store.job(job).state == "WAITING")
        assert started(sent) == []
        other = scene.join("n1")
        await until(lambda: started(other) == [job])

    scene.play(act)


def test_a_job_cancelled_while_its_plan_is_written_leaves_no_worker(tmp_path: Path) -> None:
    scene = Scene(tmp_path, held=True)

    async def act() -> None:
        sent, (job,) = await scene.open("job")
        scene.controller.post(job, CancelRequested())
        await asyncio.sleep(0.2)  # time enough for a controller that does not wait for its turn
        scene.store.go_on.set()
        await until(lambda: any(isinstance(message, StopWorkers) for message in sent))
        assert [type(message) for message in sent] == [StartWorker, StopWorkers]
        assert scene.store.job(job).state == "CANCELLED"

    scene.play(act)


def test_a_job_whose_hardware_class_is_gone_waits_says_so_and_holds_nobody_up(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    async def act() -> None:
        _, (job,) = await scene.open("job")
        scene.controller.node_left("n0")
        other = scene.join("n1", hardware_class="cpu:OLD")
        await until(lambda: "cpu:AVX2, and no node" in str(scene.store.events(job, after=0)[-1].data.get("fact")))
        assert scene.store.job(job).state == "WAITING"
        second = await scene.submit("second")
        await until(lambda: started(other) == [second])
        back = scene.join("n2")
        await until(lambda: started(back) == [job])

    scene.play(act)


def test_a_restarted_master_keeps_a_job_to_the_hardware_class_it_began_on(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    async def before() -> None:
        await scene.open("job")

    scene.play(before)
    again = Scene(tmp_path)

    async def after() -> None:
        other, like = again.join("n1", hardware_class="cpu:OLD"), again.join("n2")
        again.serve()
        await until(lambda: bool(started(like)))
        assert started(other) == []

    again.play(after)


def test_a_restarted_master_warns_nobody_of_nodes_that_are_about_to_dial(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    async def before() -> None:
        await scene.open("job")

    scene.play(before)
    again = Scene(tmp_path)

    async def after() -> None:
        again.serve()
        await until(lambda: bool(again.controller.scheduler.waits))
        sent = again.join("n0")
        await until(lambda: bool(started(sent)))
        (job,) = started(sent)
        assert [event for event in again.store.events(job, after=0) if event.kind == "warning"] == []

    again.play(after)


def test_an_agent_that_comes_back_takes_its_name_over_and_its_old_workers_count_as_lost(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    async def act() -> None:
        first = scene.join("n0", identity="boot/1")
        scene.join("n0", identity="boot/2")  # another machine with this name
        job = await scene.submit("job")
        scene.serve()
        await until(lambda: started(first) == [job])
        scene.join("n0", identity="boot/1")
        assert [node.id for node in scene.cluster.nodes()] == ["n0", "n0~2"]
        await until(lambda: scene.store.job(job).attempt == 2)
        assert (1, 0) not in {(attempt, rank) for (_, attempt, rank) in scene.cluster.workers}

    scene.play(act)


def test_other_jobs_start_beside_a_probe_and_its_job_after_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    async def act() -> None:
        sent = scene.join("n0", cores=5)
        probed = await scene.submit("probed", resources=Resources(), stop=MaxTime("1h"))
        scene.serve()
        await until(lambda: scene.store.job(probed).state == "PLANNING")
        second = await scene.submit("second")
        await until(lambda: second in started(sent))
        assert [(m.job_id, m.attempt) for m in sent if isinstance(m, StartWorker)] == [(probed, 0), (second, 1)]
        assert scene.store.job(probed).state == "PLANNING"
        scene.controller.worker_ended((probed, 0, 0), "signal 9")
        await until(lambda: scene.store.job(probed).attempt == 1)
        plan = scene.store.job(probed).plan
        assert plan is not None
        assert "the probe on n0 was lost: signal 9" in plan["summary"]

    scene.play(act)


def test_a_job_that_was_probed_gets_the_places_that_were_held_for_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    store = scene.store.save

    def slowly(job: Job, *arguments: Any) -> Any:
        if isinstance(job.state, Queued) and job.probed is not None:
            time.sleep(0.3)  # time enough for a scheduler that looks at what is free meanwhile
        return store(job, *arguments)

    scene.store.save = slowly  # type: ignore[method-assign]

    async def act() -> None:
        scene.join("n0", cores=2)
        sent = submission("probed", val=False, batch_size=4, stop=MaxTime("1h"))
        heavy = sent.facts.model_copy(update={"flop_per_sample": 1e11})
        job = (await scene.controller.submit(sent.model_copy(update={"facts": heavy}), ADMIN)).id
        scene.serve()
        probe = (job, 0, 0)
        await until(lambda: probe in scene.cluster.workers)
        slow = CellTime(samples=1, seconds=1.0)
        scene.controller.worker_says(probe, Probed(profile=profile_of(cells=(slow,), cell_samples=1), seconds=1.0))
        await until(lambda: any(event.kind == "probed" for event in scene.store.events(job, after=0)))
        await asyncio.sleep(0.05)  # until it has asked for the probe's end
        scene.controller.worker_ended(probe, "ended")
        await until(lambda: scene.store.job(job).attempt == 1)
        plan = scene.store.job(job).plan
        assert plan is not None
        assert len(plan["workers"]) == 2

    scene.play(act)


def test_places_that_are_held_for_a_job_are_free_for_nobody_until_they_are_let_go(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.join("n0")
    held = [placement.model_copy(update={"node_id": "n0"}) for placement in plan_of([(0, 2), (2, 4)]).workers]

    def free() -> tuple[int, int]:
        (node,) = scene.cluster.nodes()
        return node.free_cores, node.free_memory // GIB

    scene.cluster.hold("job", held, threads=1, memory=GIB)
    scene.cluster.hold("other", held[:1], threads=1, memory=2 * GIB)
    assert free() == (1, 4)
    scene.cluster.hold("job", (), 0, 0)
    assert free() == (3, 6)
    scene.store.close()


def test_a_master_that_is_started_anew_while_a_job_is_probed_probes_it_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    async def before() -> None:
        first = scene.join("n0")
        job = await scene.submit("job", resources=Resources(), stop=MaxTime("1h"))
        scene.serve()
        await until(lambda: scene.store.job(job).state == "PLANNING")
        await until(lambda: bool(started(first)))

    scene.play(before)
    again = Scene(tmp_path)

    async def after() -> None:
        sent = again.join("n0")
        again.serve()
        await until(lambda: bool(started(sent)))
        assert [m.attempt for m in sent if isinstance(m, StartWorker)] == [0]

    again.play(after)


def test_a_store_that_can_not_be_written_for_a_while_holds_jobs_up_and_ends_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline.master.controller.RETRY_STORE_S", 0.01)
    scene, refused = Scene(tmp_path), 0
    save = scene.store.save

    def locked_at_first(*arguments: Any) -> Any:
        nonlocal refused
        with scene.store._writing():
            if refused < 3:
                refused += 1
                raise OperationalError("UPDATE", {}, Exception("database is locked"))
        return save(*arguments)

    async def act() -> None:
        monkeypatch.setattr(scene.store, "save", locked_at_first)
        sent, (job,) = await scene.open("job")
        await until(lambda: started(sent) == [job])
        assert refused == 3

    scene.play(act)


def test_a_node_that_does_not_end_a_worker_is_given_up_so_that_its_job_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline.master.controller.ENDED_WITHIN_S", 0.05)
    scene = Scene(tmp_path)

    async def act() -> None:
        sent, (job,) = await scene.open("job")
        await until(lambda: started(sent) == [job])
        scene.controller.post(job, CancelRequested())
        await until(lambda: scene.cluster.linked("n0") is None)
        assert any(isinstance(message, StopWorkers) for message in sent)
        assert scene.cluster.workers == {}

    scene.play(act)


def test_other_jobs_leave_a_node_in_quarantine_and_none_starts_there(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    async def act() -> None:
        scene.staff("n0", cores=2)
        scene.serve()
        jobs = [await scene.submit(name, stop=MaxTime(600)) for name in ("first", "second")]
        await until(lambda: all(scene.store.job(job).state == "RUNNING" for job in jobs))
        found = scene.controller._jobs[jobs[0]]
        scene.controller._perform(found, Quarantine("n0", "it computes wrongly"))
        scene.staff("n1", cores=2)
        await until(lambda: {w.placement.node_id for w in scene.cluster.workers.values()} == {"n1"})
        third = await scene.submit("third", stop=MaxTime(600))
        await until(lambda: third in scene.controller.scheduler.waits)
        assert all(worker.placement.node_id == "n1" for worker in scene.cluster.workers.values())

    scene.play(act)


def test_the_end_of_one_part_of_the_controller_is_the_end_of_all(tmp_path: Path) -> None:
    """Jobs that are taken and never looked at are worse than a master that is not there."""
    scene = Scene(tmp_path)

    async def act() -> None:
        async def fails() -> None:
            raise RuntimeError("a bug")

        scene.controller.scheduler.run = fails  # type: ignore[method-assign]
        with pytest.raises(ExceptionGroup) as caught:
            await asyncio.wait_for(scene.controller.run(), 60)
        assert caught.group_contains(RuntimeError, match="a bug")

    asyncio.run(act())
