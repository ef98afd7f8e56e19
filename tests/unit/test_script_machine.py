"""A script's life, without a process: whatever fails and whenever, restarts are counted right and bounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.errors import UserCodeError
from paceline.master import scripts
from paceline.master.commands import Command, Record, Send, SetTimer, StartWorkers, StopWorkers
from paceline.master.delivery import Output
from paceline.master.events import (
    Answer,
    AttemptEnded,
    CancelRequested,
    Event,
    Late,
    Lost,
    NodeDraining,
    Planned,
    Preempted,
    Tick,
)
from paceline.master.lives import held_by_worker
from paceline.master.scriptends import FRUITFUL_S, LEAVING, OUTPUT
from paceline.master.scripts import FAILURES, SEEN_WITHIN_S
from paceline.master.scriptstates import ScriptEnding, ScriptJob, ScriptRunning, ScriptSaving, ScriptStarting
from paceline.master.starting import SETUP
from paceline.master.states import TERMINAL, Cancelled, Failed, Succeeded
from paceline.messages.from_worker import (
    Beat,
    FromWorker,
    OutputSaved,
    Reported,
    ScriptEnded,
    ScriptReady,
    WorkerFailed,
    WorkerHello,
)
from paceline.messages.to_worker import EndScript, RunScript, SaveOutput, ScriptSetup
from paceline.plan import Plan
from paceline.script import ScriptOptions, ScriptSubmission
from paceline.spec import Resources, Versions

from builders import plan_of

OK = ScriptEnded(status=0, ended_at=0.0)
FETCH = SaveOutput(folder="outputs")


def job_of(workers: int = 2, max_restarts: int = 0, **fields: object) -> ScriptJob:
    asked = {"max_restarts": max_restarts, "resources": Resources(workers=workers), **fields}
    options = ScriptOptions(command=("train.py",), **asked)
    versions = Versions(paceline="1", python="3.11")
    return ScriptJob("job", ScriptSubmission(request_id="r", versions=versions, options=options, project="a" * 64))


def places(workers: int) -> Plan:
    return plan_of([(rank, rank + 1) for rank in range(workers)])


def failure(at: float = 0.0, fact: str = "the script raised KeyError: 1") -> ScriptEnded:
    return ScriptEnded(status=1, ended_at=at, error=UserCodeError(fact).to_json())


TERMINATED = ScriptEnded(status=-15, ended_at=0.0)


def asked_to_end(commands: Sequence[Command], stacks: bool = False) -> list[int]:
    """The ranks that are sent SIGTERM, or, for their stacks, SIGABRT."""
    return [c.rank for c in commands if isinstance(c, Send) and c.message == EndScript(stacks=stacks)]


def fetched(commands: Sequence[Command]) -> list[int]:
    """The ranks that are to upload their node's output."""
    return [c.rank for c in commands if isinstance(c, Send) and c.message == FETCH]


@dataclass
class Scene:
    """Plays events to one job and keeps all commands."""

    job: ScriptJob
    now: float = 0.0
    commands: list[Command] = field(default_factory=list)

    def play(self, *events: Event) -> list[Command]:
        made: list[Command] = []
        for event in events:
            self.job, commands = scripts.step(self.job, event, self.now)
            made += commands
        self.commands += made
        return made

    def says(self, rank: int, message: FromWorker) -> list[Command]:
        return self.play(Answer(self.job.attempt, rank, message))

    def run(self, workers: int = 2, plan: Plan | None = None) -> list[RunScript]:
        """Start an attempt, to where the script runs on all ranks; return what they were told."""
        self.play(Planned(plan or places(workers)))
        for rank in range(workers):
            self.says(rank, WorkerHello(address=f"host{rank}"))
        made = [command for rank in range(workers) for command in self.says(rank, ScriptReady(store_port=100 + rank))]
        return [
            command.message for command in made if isinstance(command, Send) and isinstance(command.message, RunScript)
        ]

    def ends(self, how: ScriptEnded = TERMINATED) -> list[Command]:
        """The script ends on all ranks where it has not yet."""
        assert isinstance(self.job.state, ScriptRunning | ScriptEnding)
        return [command for rank in self.job.state.live for command in self.says(rank, how)]

    def fails(self, attempt: int, rank: int = 0) -> None:
        """The script raises on one rank, and the workers end where that is not the last word."""
        self.says(rank, failure())
        self.play(Late(attempt, FAILURES))
        self.ends()
        self.play(AttemptEnded(attempt))

    def looks(self, seconds: float) -> list[Command]:
        """The master looks once a second whether it hangs."""
        made: list[Command] = []
        for _ in range(int(seconds)):
            self.now += 1.0
            made += self.play(Tick(self.job.attempt))
        return made

    def loses(self, attempt: int, rank: int = 0) -> None:
        """A worker is killed; the script ends on the other ranks, and their workers do."""
        self.play(Lost(attempt, rank, "signal 9"))
        self.ends()
        self.play(AttemptEnded(attempt))

    def saves(self) -> None:
        """Whoever is asked uploads its node's output, named by its rank."""
        assert isinstance(self.job.state, ScriptSaving)
        for rank in sorted(self.job.state.asked):
            self.says(rank, OutputSaved(blob=str(rank) * 64, nbytes=rank))

    def records(self, kind: str) -> list[Record]:
        return [command for command in self.commands if isinstance(command, Record) and command.kind == kind]


def running(workers: int = 2, max_restarts: int = 0, plan: Plan | None = None, **fields: object) -> Scene:
    workers = len(plan.workers) if plan else workers
    scene = Scene(job_of(workers, max_restarts, **fields))
    scene.run(workers, plan)
    assert isinstance(scene.job.state, ScriptRunning)
    return scene


def test_all_ranks_start_at_once_and_meet_at_the_store_of_rank_0() -> None:
    scene = Scene(job_of())
    told = scene.run()
    assert [order.environment["RANK"] for order in told] == ["0", "1"]
    assert {(e.environment["MASTER_ADDR"], e.environment["MASTER_PORT"]) for e in told} == {("host0", "100")}


def two_a_node(workers: int = 4) -> Plan:
    """Ranks 0 and 1 on n0, 2 and 3 on n1, and so on."""
    plan = places(workers)
    moved = [w.model_copy(update={"node_id": f"n{w.rank // 2}", "node_name": f"n{w.rank // 2}"}) for w in plan.workers]
    return plan.model_copy(update={"workers": tuple(moved)})


WROTE = ScriptEnded(status=0, ended_at=0.0, wrote=True)


def test_the_output_of_every_node_is_kept_once_all_ranks_have_ended_well() -> None:
    scene = running(plan=two_a_node())
    for rank in (1, 3, 2):
        assert scene.says(rank, OK) == []
    assert fetched(scene.says(0, WROTE)) == [0, 2]
    assert scene.says(2, OutputSaved(blob="c" * 64, nbytes=9)) == []
    scene.says(0, OutputSaved(blob="b" * 64, nbytes=7))
    assert isinstance(scene.job.state, Succeeded)
    output = scene.job.state.delivery
    assert isinstance(output, Output)
    assert (output.blob, output.nbytes, output.returned) == ("b" * 64, 7, (None,) * 4)
    assert [folder and folder.blob[0] for folder in output.folders] == ["b", "b", "c", "c"]


def test_who_failed_first_is_at_fault_whoever_is_heard_first() -> None:
    scene = running()
    scene.says(0, failure(at=2.0, fact="connection closed by peer"))
    assert not isinstance(scene.job.state, Failed)
    scene.says(1, failure(at=1.0))
    scene.play(Late(1, FAILURES))
    scene.saves()
    assert isinstance(scene.job.state, Failed)
    assert scene.job.state.error["fact"] == "rank 1 on n1: the script raised KeyError: 1"
    assert scene.job.state.error["details"]["rank"] == 1


def test_a_worker_lost_within_the_grace_explains_the_others_failure_and_is_not_counted() -> None:
    scene = running()
    scene.says(0, failure(fact="connection closed by peer"))
    scene.play(Lost(1, 1, "signal 9"), Late(1, FAILURES), AttemptEnded(1))
    assert scene.run()[0].environment["TORCHELASTIC_RESTART_COUNT"] == "0"


def test_restarts_are_counted_up_to_the_users_bound() -> None:
    scene = Scene(job_of(max_restarts=2))
    seen = []
    for attempt in (1, 2, 3):
        seen.append(scene.run()[0].environment["TORCHELASTIC_RESTART_COUNT"])
        scene.fails(attempt)
    assert seen == ["0", "1", "2"]
    scene.saves()
    assert isinstance(scene.job.state, Failed)


def test_before_a_restart_the_other_ranks_get_sigterm_and_a_moment_to_save() -> None:
    scene = running(workers=3, max_restarts=1)
    scene.says(1, failure())
    commands = scene.play(Late(1, FAILURES))
    assert asked_to_end(commands) == [0, 2]
    assert StopWorkers(1) not in commands
    assert scene.says(0, TERMINATED) == []
    assert StopWorkers(1) in scene.says(2, TERMINATED)
    assert (scene.job.state_name, scene.job.training.restarts) == ("RECOVERING", 1)


def test_a_rank_that_does_not_end_in_time_is_stopped_and_holds_no_restart_up() -> None:
    scene = running(max_restarts=1)
    scene.says(1, failure())
    scene.play(Late(1, FAILURES))
    assert StopWorkers(1, (0,)) in scene.play(Late(1, LEAVING))
    assert scene.job.state_name == "RECOVERING"


def test_what_a_failed_script_had_written_is_kept_from_every_node() -> None:
    scene = running(workers=3)
    scene.says(1, failure())
    assert asked_to_end(scene.play(Late(1, FAILURES))) == [0, 2]
    assert scene.play(Lost(1, 2, "signal 9"), NodeDraining("n0")) == []
    assert fetched(scene.says(0, TERMINATED)) == [0, 1]
    scene.says(1, OutputSaved(blob=None))
    scene.says(0, OutputSaved(blob="b" * 64, nbytes=7))
    assert isinstance(scene.job.state, Failed)
    assert scene.job.state.error["details"]["rank"] == 1
    assert scene.job.state.output is not None
    assert [folder and folder.blob for folder in scene.job.state.output.folders] == ["b" * 64, None, None]


@pytest.mark.parametrize(
    "event", [Lost(1, 0, "signal 9"), Late(1, OUTPUT), Answer(1, 0, WorkerFailed(error={"code": "disk_full"}))]
)
def test_a_failed_scripts_own_error_stays_the_jobs_where_its_output_can_not_be_kept(event: Event) -> None:
    scene = running(workers=1)
    scene.says(0, failure())
    scene.play(Late(1, FAILURES), event)
    assert isinstance(scene.job.state, Failed)
    assert scene.job.state.error["code"] == "user_code"
    assert scene.job.state.output is None


def test_lost_workers_are_bounded_only_where_no_attempt_gets_anywhere() -> None:
    scene = Scene(job_of())
    for attempt in range(1, 8):
        scene.run()
        scene.now += FRUITFUL_S
        scene.loses(attempt)
    for attempt in range(8, 12):
        scene.run()
        scene.says(1, Reported(step=attempt, values={}))
        scene.loses(attempt)
    assert not isinstance(scene.job.state, TERMINAL)
    for attempt in range(12, 15):
        scene.run()
        scene.loses(attempt)
    scene.saves()
    assert isinstance(scene.job.state, Failed)
    assert "got no further than step 11" in scene.job.state.error["fact"]
    assert scene.job.state.output is not None


def test_a_worker_lost_after_its_script_ended_well_costs_nothing_where_no_output_goes_with_it() -> None:
    scene = running(plan=two_a_node())
    scene.says(1, WROTE)
    scene.says(3, OK)
    assert scene.play(Lost(1, 3, "signal 9"), Lost(1, 1, "signal 9")) == []  # rank 0 has the same folder
    scene.says(2, OK)
    assert scene.play(Lost(1, 2, "node n1 is gone")) == []  # nothing was written there
    assert fetched(scene.says(0, OK)) == [0]
    scene.play(Lost(1, 0, "node n0 is gone"))
    assert scene.job.state_name == "RECOVERING"


def test_another_rank_of_its_node_uploads_in_the_place_of_a_lost_one() -> None:
    scene = running(workers=2, plan=two_a_node(2))
    scene.says(0, WROTE)
    assert fetched(scene.says(1, WROTE)) == [0]
    assert fetched(scene.play(Lost(1, 0, "signal 9"))) == [1]
    scene.says(1, OutputSaved(blob="b" * 64, nbytes=7))
    assert isinstance(scene.job.state, Succeeded)


def test_a_node_that_is_given_back_moves_the_script() -> None:
    scene = running()
    assert scene.play(NodeDraining("elsewhere")) == []
    assert asked_to_end(scene.play(NodeDraining("n1"))) == [0, 1]
    assert scene.play(Answer(1, 0, TERMINATED)) == []
    assert StopWorkers(1) in scene.play(Answer(1, 1, TERMINATED))
    assert (scene.job.state_name, scene.job.training.restarts) == ("RECOVERING", 0)


def test_a_script_that_is_to_make_room_starts_anew_later_and_that_is_not_counted() -> None:
    scene = running()
    assert asked_to_end(scene.play(Preempted(1, "job-2", "job-2 is of a higher priority"))) == [0, 1]
    assert scene.play(Preempted(1, "job-2", "again"), Answer(1, 1, TERMINATED)) == []
    assert StopWorkers(1) in scene.play(Late(1, LEAVING))  # rank 0 takes too long
    scene.play(AttemptEnded(1))
    assert (scene.job.state_name, scene.job.training.restarts) == ("WAITING", 0)


# ---- hangs ----


STACK = 'Thread 0x1 (most recent call first):\n  File "train.py", line 7 in wait'
ABORTED = ScriptEnded(status=-6, ended_at=0.0, error=UserCodeError("aborted", "", traceback=STACK).to_json())


def beat(rank: int, counter: int) -> Answer:
    return Answer(1, rank, Beat(step=0, cells=counter, phase="script", stack=""))


def test_a_script_hangs_only_where_no_rank_makes_progress_for_longer_than_the_bound() -> None:
    scene = running(hang_timeout=60)
    for second in range(1, 200):
        scene.now = float(second)
        scene.play(beat(0, 7), beat(1, second // 50))  # rank 0 waits for rank 1, which does something now and then
        assert scene.play(Tick(1)) == [SetTimer(1.0, Tick(1))]
    scene.says(1, OK)
    assert asked_to_end(scene.looks(60 + SEEN_WITHIN_S), stacks=True) == []
    assert asked_to_end(scene.looks(1), stacks=True) == [0]


def test_a_script_that_hangs_is_restarted_and_counted_and_fails_with_the_stacks_of_each_rank_at_last() -> None:
    scene = running(max_restarts=1, hang_timeout="10m")
    assert asked_to_end(scene.looks(600 + SEEN_WITHIN_S), stacks=True) == []
    assert asked_to_end(scene.looks(1), stacks=True) == [0, 1]
    assert scene.records("hung")[0].data == {"ranks": [0, 1], "seconds": 600.0}
    scene.ends(ABORTED)
    scene.play(AttemptEnded(1))
    assert (scene.job.state_name, scene.job.training.restarts) == ("WAITING", 1)
    assert "restart 1 of 1: the script hangs: for 600 s, rank 0 on n0, rank 1 on n1" in scene.job.state.reason
    scene.run()
    scene.looks(601 + SEEN_WITHIN_S)
    scene.says(1, ABORTED)
    scene.play(Late(2, LEAVING))  # rank 0's worker is silent too
    scene.saves()
    assert isinstance(scene.job.state, Failed)
    assert scene.job.state.error["code"] == "user_code"
    shown = scene.job.state.error["details"]["traceback"]
    assert shown == f"rank 0 on n0:\nit showed no stack.\nrank 1 on n1:\n{STACK}"


def test_the_time_in_which_the_master_itself_stood_still_is_no_hang() -> None:
    scene = running(hang_timeout=60)
    scene.looks(30)
    scene.now = 3000.0
    assert asked_to_end(scene.play(Tick(1)), stacks=True) == []
    assert asked_to_end(scene.looks(28 + SEEN_WITHIN_S), stacks=True) == []
    assert asked_to_end(scene.looks(1), stacks=True) == [0, 1]


def test_without_a_bound_a_script_may_rest_for_ever() -> None:
    scene = running(hang_timeout=None)
    assert asked_to_end(scene.looks(10_000), stacks=True) == []


def test_what_is_reported_is_recorded_and_rank_0s_newest_values_are_the_jobs() -> None:
    scene = running()
    scene.says(0, Reported(step=3, values={"loss": 0.5}))
    scene.says(1, Reported(step=4, values={"loss": 9.0}))
    scene.says(0, Reported(step=None, values={"lr": 0.1}))
    assert [record.data["rank"] for record in scene.records("reported")] == [0, 1, 0]
    assert scene.job.training.step == 4
    assert scene.job.training.history == ({"step": 4.0, "loss": 0.5, "lr": 0.1},)


def test_an_error_while_setting_up_ends_the_job_as_it_is() -> None:
    scene = Scene(job_of())
    scene.play(Planned(places(2)))
    scene.says(0, WorkerHello(address="host0"))
    scene.says(0, WorkerFailed(error={"code": "invalid_spec", "fact": "pip could not install it"}))
    assert scene.job.state == Failed({"code": "invalid_spec", "fact": "pip could not install it"})


def test_silence_while_setting_up_and_while_saving_is_bounded() -> None:
    scene = Scene(job_of())
    scene.play(Planned(places(2)), Late(1, SETUP))
    assert scene.job.state_name == "RECOVERING"
    scene = running()
    scene.says(1, OK)
    scene.says(0, OK)
    scene.play(Late(1, OUTPUT))
    assert scene.job.state_name == "RECOVERING"


# ---- a cancelled script ----


def test_a_cancelled_script_may_save_and_what_it_wrote_is_kept_before_its_workers_stop() -> None:
    scene = running()
    scene.says(1, OK)
    assert asked_to_end(scene.play(CancelRequested())) == [0]
    scene.says(0, Reported(step=9, values={}))
    assert scene.job.training.step == 9
    assert fetched(scene.says(0, TERMINATED)) == [0, 1]
    assert asked_to_end(scene.says(0, OutputSaved(blob="b" * 64, nbytes=7))) == []
    assert StopWorkers(1) in scene.says(1, OutputSaved(blob=None))
    assert isinstance(scene.job.state, Cancelled)
    assert scene.job.state.output is not None
    assert scene.job.state.output.blob == "b" * 64


def test_a_second_cancel_does_not_wait_for_the_output() -> None:
    scene = running()
    scene.play(CancelRequested())
    scene.ends()
    scene.says(1, OutputSaved(blob="c" * 64, nbytes=7))
    scene.play(CancelRequested())
    assert isinstance(scene.job.state, Cancelled)
    assert scene.job.state.output is not None
    assert [folder and folder.blob[0] for folder in scene.job.state.output.folders] == [None, "c"]


def test_a_script_cancelled_while_it_waits_for_room_has_its_output_fetched_from_where_it_ran() -> None:
    scene = running(plan=two_a_node())
    scene.play(Preempted(1, "job-2", "a higher priority"))
    scene.ends()
    scene.play(AttemptEnded(1))
    assert scene.job.state_name == "WAITING"
    started = [c for c in scene.play(CancelRequested()) if isinstance(c, StartWorkers)]
    assert [(p.rank, p.node_id) for p in started[0].placements] == [(0, "n0"), (2, "n1")]
    assert held_by_worker(scene.job) == (0, 0)
    assert fetched(scene.says(0, WorkerHello(address="host0"))) == [0]
    scene.says(0, OutputSaved(blob="b" * 64, nbytes=7))
    scene.play(Lost(2, 2, "node n1 is gone"))
    assert isinstance(scene.job.state, Cancelled)
    assert scene.job.state.output is not None
    assert [folder and folder.blob[0] for folder in scene.job.state.output.folders] == ["b", "b", None, None]


def test_a_script_cancelled_while_its_next_attempt_starts_or_its_last_one_ends_has_its_output_fetched_too() -> None:
    scene = running(max_restarts=1)
    scene.fails(1)
    scene.play(Planned(places(2)), CancelRequested())
    assert scene.job.state_name == "RECOVERING"
    assert [type(c) for c in scene.play(AttemptEnded(2))].count(StartWorkers) == 1
    scene = running()
    scene.play(NodeDraining("n1"))
    scene.ends()
    scene.play(CancelRequested())
    assert [type(c) for c in scene.play(AttemptEnded(1))].count(StartWorkers) == 1


def test_a_script_that_never_ran_is_cancelled_at_once() -> None:
    scene = Scene(job_of())
    scene.play(Planned(places(2)))
    assert StopWorkers(1) in scene.play(CancelRequested())
    assert scene.job.state == Cancelled()


def test_a_script_that_has_ended_keeps_its_places_until_its_output_is_saved() -> None:
    scene = running()
    scene.says(0, OK)
    scene.says(1, OK)
    assert scene.play(NodeDraining("n1"), Preempted(1, "job-2", "a higher priority")) == []
    scene.saves()
    assert isinstance(scene.job.state, Succeeded)


def test_a_script_that_leaves_its_places_can_still_be_cancelled_and_lose_workers() -> None:
    scene = running()
    scene.play(NodeDraining("n1"))
    assert asked_to_end(scene.play(CancelRequested())) == []
    commands = scene.play(Lost(1, 1, "signal 9"), Lost(1, 0, "signal 9"))
    assert StopWorkers(1) in commands
    assert scene.job.state == Cancelled()


# ---- whatever happens ----


events = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["ends", "fails", "is lost", "reports"]), st.integers(0, 2)),
        st.tuples(st.sampled_from(["cancel", "time passes", "stale", "hangs", "makes room", "drains"]), st.just(0)),
    ),
    max_size=40,
)


def messages_of(scene: Scene, kind: str, rank: int) -> Sequence[Event]:
    attempt = scene.job.attempt
    match kind:
        case "ends":
            return [Answer(attempt, rank, OK)]
        case "fails":
            return [Answer(attempt, rank, failure(at=scene.now))]
        case "is lost":
            return [Lost(attempt, rank, "signal 9")]
        case "reports":
            return [Answer(attempt, rank, Reported(step=attempt, values={"x": 1.0}))]
        case "cancel":
            return [CancelRequested()]
        case "makes room":
            return [Preempted(attempt, "job-2", "a higher priority")]
        case "drains":
            return [NodeDraining("n0")]
        case "stale":
            return [
                Answer(attempt - 1, 0, failure()),
                Lost(attempt - 1, 0, "late"),
                AttemptEnded(attempt - 1),
                Late(attempt - 1, FAILURES),
            ]
    return []


@dataclass
class World:
    """Agents and workers that do what they are told, and check it. live: attempts whose workers may be there."""

    scene: Scene
    live: set[int] = field(default_factory=set)
    timers: list[SetTimer] = field(default_factory=list)

    def play(self, *events: Event) -> None:
        for event in events:
            for command in self.scene.play(event):
                self.do(command)

    def do(self, command: Command) -> None:
        attempt = self.scene.job.attempt
        match command:
            case StartWorkers(started, placements):
                assert not self.live
                self.live.add(started)
                if isinstance(self.scene.job.state, ScriptSaving):
                    self.play(*(Answer(started, p.rank, WorkerHello(address="host")) for p in placements))
            case Send(to, rank, message):
                assert to == attempt
                if isinstance(message, SaveOutput):
                    self.play(Answer(attempt, rank, OutputSaved(blob="b" * 64)))
                if isinstance(message, EndScript):
                    self.play(Answer(attempt, rank, TERMINATED))
            case StopWorkers(to, _):
                assert to == attempt
            case SetTimer():
                self.timers.append(command)

    def time_passes(self) -> None:
        due, self.timers = self.timers, []
        self.play(*(timer.event for timer in due if getattr(timer.event, "waiting_for", "") in (FAILURES, LEAVING)))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3), st.integers(0, 3), events)
def test_whatever_happens_attempts_never_overlap_restarts_are_bounded_and_ends_absorb(
    workers: int, max_restarts: int, happenings: list[tuple[str, int]]
) -> None:
    scene = Scene(job_of(workers, max_restarts, hang_timeout=10))
    world = World(scene)
    for kind, rank in [*happenings, *[("ends", r % workers) for r in range(8 * workers)]]:
        if isinstance(scene.job.state, TERMINAL):
            break
        if scene.job.state_name in ("QUEUED", "WAITING"):
            assert not world.live
            if kind == "cancel":
                world.play(CancelRequested())
                continue
            before = len(scene.commands)
            counts = {order.environment["TORCHELASTIC_RESTART_COUNT"] for order in scene.run(workers)}
            assert counts == {str(scene.job.training.restarts)}
            world.live.add(scene.job.attempt)
            world.timers += [c for c in scene.commands[before:] if isinstance(c, SetTimer)]
        elif scene.job.state_name == "RECOVERING":
            world.live.clear()
            world.play(*([CancelRequested()] if kind == "cancel" else []), AttemptEnded(scene.job.attempt))
        else:
            for _ in range(20 if kind == "hangs" else 1):
                scene.now += 1.0
                world.play(Tick(scene.job.attempt))
            world.play(*messages_of(scene, kind, rank % workers))
            world.time_passes()
        assert scene.job.training.restarts <= max_restarts
    ended = scene.job
    if isinstance(ended.state, TERMINAL):
        late = [
            Answer(ended.attempt, 0, failure()),
            Lost(ended.attempt, 0, "late"),
            CancelRequested(),
            AttemptEnded(ended.attempt),
        ]
        assert scene.play(*late) == []
        assert scene.job == ended
    if any(kind == "cancel" for kind, _ in happenings):
        assert not isinstance(ended.state, Failed | Succeeded) or not ended.training.cancelled
    if not happenings:
        assert isinstance(ended.state, Succeeded)


@pytest.mark.parametrize("attempt", [0, 3])
def test_a_restarted_master_finds_the_script_in_the_queue_with_its_count(attempt: int) -> None:
    before = job_of(max_restarts=2)
    progress = before.training.model_copy(update={"restarts": 1, "step": 5})
    job, _ = scripts.resumed("job", before.submission, attempt, 1.5, progress, places(2) if attempt else None)
    assert job.state_name == ("WAITING" if attempt else "QUEUED")
    assert (job.training, job.attempt, job.nodes) == (progress, attempt, ("n0", "n1") if attempt else ())
    assert Scene(job).run()[0].environment["TORCHELASTIC_RESTART_COUNT"] == "1"
    assert isinstance(scripts.step(job, Planned(places(2)), 0.0)[0].state, ScriptStarting)


def test_a_script_that_was_cancelled_does_not_run_again_under_the_next_master() -> None:
    scene = running()
    scene.play(CancelRequested())
    assert scene.records("cancelling")  # with which the store keeps it
    before = scene.job
    job, _ = scripts.resumed("job", before.submission, 1, 1.5, before.training, places(2))
    scene = Scene(job)
    scene.play(Lost(2, 0, "its node left before it was started"), Lost(2, 1, "its node left before it was started"))
    assert (scene.job.state, scene.job.elapsed_s) == (Cancelled(), 1.5)


def test_a_worker_is_told_what_to_set_up_when_it_says_hello() -> None:
    scene = Scene(job_of())
    scene.play(Planned(places(2)))
    sent = scene.says(1, WorkerHello(address="host1"))
    assert sent == [Send(1, 1, ScriptSetup(submission=scene.job.submission))]
