"""The controller: events that come while another is being made durable are handled in their order."""

from __future__ import annotations

import asyncio
from pathlib import Path

from paceline.master.states import CancelRequested
from paceline.messages import StartWorker, StopWorkers

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
