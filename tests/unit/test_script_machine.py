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
)
from paceline.master.scripts import (
    FAILURES,
    FRUITFUL_S,
    LEAVING,
    OUTPUT,
    SETUP,
    ScriptJob,
    ScriptRunning,
    ScriptStarting,
)
from paceline.master.states import TERMINAL, Cancelled, Failed, Succeeded
from paceline.messages.from_worker import (
    FromWorker,
    OutputSaved,
    Reported,
    ScriptEnded,
    ScriptReady,
    WorkerFailed,
    WorkerHello,
)
from paceline.messages.to_worker import GiveUp, RunScript, SaveOutput, ScriptSetup
from paceline.plan import Plan
from paceline.script import ScriptOptions, ScriptSubmission
from paceline.spec import Resources, Versions

from builders import plan_of

OK = ScriptEnded(status=0, ended_at=0.0)


def job_of(workers: int = 2, max_restarts: int = 0) -> ScriptJob:
    options = ScriptOptions(command=("train.py",), max_restarts=max_restarts, resources=Resources(workers=workers))
    versions = Versions(paceline="1", python="3.11")
    return ScriptJob("job", ScriptSubmission(request_id="r", versions=versions, options=options, project="a" * 64))


def places(workers: int) -> Plan:
    return plan_of([(rank, rank + 1) for rank in range(workers)])


def failure(at: float = 0.0, fact: str = "the script raised KeyError: 1") -> ScriptEnded:
    return ScriptEnded(status=1, ended_at=at, error=UserCodeError(fact).to_json())


TERMINATED = ScriptEnded(status=-15, ended_at=0.0)


def asked_to_end(commands: Sequence[Command]) -> list[int]:
    """The ranks that are sent SIGTERM."""
    return [c.rank for c in commands if isinstance(c, Send) and isinstance(c.message, GiveUp)]


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

    def run(self, workers: int = 2) -> list[RunScript]:
        """Start an attempt, to where the script runs on all ranks; return what they were told."""
        self.play(Planned(places(workers)))
        for rank in range(workers):
            self.says(rank, WorkerHello(pid=1, address=f"host{rank}"))
        made = [command for rank in range(workers) for command in self.says(rank, ScriptReady(store_port=100 + rank))]
        return [
            command.message for command in made if isinstance(command, Send) and isinstance(command.message, RunScript)
        ]

    def fails(self, attempt: int, rank: int = 0) -> None:
        """The script raises on one rank, and the workers end where that is not the last word."""
        self.says(rank, failure())
        self.play(Late(attempt, FAILURES), AttemptEnded(attempt))

    def records(self, kind: str) -> list[Record]:
        return [command for command in self.commands if isinstance(command, Record) and command.kind == kind]


def running(workers: int = 2, max_restarts: int = 0) -> Scene:
    scene = Scene(job_of(workers, max_restarts))
    scene.run(workers)
    assert isinstance(scene.job.state, ScriptRunning)
    return scene


def test_all_ranks_start_at_once_and_meet_at_the_store_of_rank_0() -> None:
    scene = Scene(job_of())
    told = scene.run()
    assert [order.environment["RANK"] for order in told] == ["0", "1"]
    assert {(e.environment["MASTER_ADDR"], e.environment["MASTER_PORT"]) for e in told} == {("host0", "100")}


def test_the_output_is_saved_once_all_ranks_have_ended_well_and_the_job_has_succeeded() -> None:
    scene = running()
    assert scene.says(1, OK) == []
    sent = scene.says(0, OK)
    assert sent[0] == Send(1, 0, SaveOutput())
    scene.says(0, OutputSaved(blob="b" * 64, nbytes=7))
    assert isinstance(scene.job.state, Succeeded)
    output = scene.job.state.delivery
    assert isinstance(output, Output)
    assert (output.blob, output.nbytes, output.returned) == ("b" * 64, 7, (None, None))


def test_who_failed_first_is_at_fault_whoever_is_heard_first() -> None:
    scene = running()
    scene.says(0, failure(at=2.0, fact="connection closed by peer"))
    assert not isinstance(scene.job.state, Failed)
    scene.says(1, failure(at=1.0))
    scene.play(Late(1, FAILURES))
    scene.says(0, OutputSaved(blob=None))
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
    scene.says(0, OutputSaved(blob=None))
    assert isinstance(scene.job.state, Failed)


def test_what_a_failed_script_had_written_is_kept_and_the_first_rank_is_asked_to_end_for_it() -> None:
    scene = running(workers=3)
    scene.says(1, failure())
    assert scene.play(Late(1, FAILURES))[:2] == [StopWorkers(1, (1, 2)), Send(1, 0, GiveUp(key="job"))]
    assert scene.play(Lost(1, 1, "ended"), Lost(1, 2, "ended"), NodeDraining("n0")) == []
    assert Send(1, 0, SaveOutput()) in scene.says(0, ScriptEnded(status=-15, ended_at=9.0))
    scene.says(0, OutputSaved(blob="b" * 64, nbytes=7))
    assert isinstance(scene.job.state, Failed)
    assert scene.job.state.error["details"]["rank"] == 1
    assert scene.job.state.output is not None
    assert scene.job.state.output.blob == "b" * 64


@pytest.mark.parametrize(
    "event", [Lost(1, 0, "signal 9"), Late(1, OUTPUT), Answer(1, 0, WorkerFailed(error={"code": "disk_full"}))]
)
def test_a_failed_scripts_own_error_stays_the_jobs_where_its_output_can_not_be_kept(event: Event) -> None:
    scene = running()
    scene.says(1, failure())
    scene.play(Late(1, FAILURES), event)
    assert isinstance(scene.job.state, Failed)
    assert scene.job.state.error["code"] == "user_code"
    assert scene.job.state.output is None


def test_lost_workers_are_bounded_only_where_no_attempt_gets_anywhere() -> None:
    scene = Scene(job_of())
    for attempt in range(1, 8):
        scene.run()
        scene.now += FRUITFUL_S
        scene.play(Lost(attempt, 0, "signal 9"), AttemptEnded(attempt))
    for attempt in range(8, 12):
        scene.run()
        scene.says(1, Reported(step=attempt, values={}))
        scene.play(Lost(attempt, 0, "signal 9"), AttemptEnded(attempt))
    assert not isinstance(scene.job.state, TERMINAL)
    for attempt in range(12, 15):
        scene.run()
        scene.play(Lost(attempt, 0, "signal 9"), AttemptEnded(attempt))
    assert isinstance(scene.job.state, Failed)
    assert "got no further than step 11" in scene.job.state.error["fact"]


def test_a_worker_lost_after_its_script_ended_well_costs_nothing_but_for_rank_0() -> None:
    scene = running()
    scene.says(1, OK)
    assert scene.play(Lost(1, 1, "node n1 is gone")) == []
    scene.says(0, OK)
    scene.play(Lost(1, 0, "node n0 is gone"))
    assert scene.job.state_name == "RECOVERING"


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
    scene.says(0, WorkerHello(pid=1, address="host0"))
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


events = st.lists(
    st.one_of(
        st.tuples(st.just("ends"), st.integers(0, 2)),
        st.tuples(st.just("fails"), st.integers(0, 2)),
        st.tuples(st.just("is lost"), st.integers(0, 2)),
        st.tuples(st.just("reports"), st.integers(0, 2)),
        st.tuples(st.sampled_from(["cancel", "time passes", "stale"]), st.just(0)),
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
        case "stale":
            return [
                Answer(attempt - 1, 0, failure()),
                Lost(attempt - 1, 0, "late"),
                AttemptEnded(attempt - 1),
                Late(attempt - 1, FAILURES),
            ]
    return []


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3), st.integers(0, 3), events)
def test_whatever_happens_attempts_never_overlap_restarts_are_bounded_and_ends_absorb(
    workers: int, max_restarts: int, happenings: list[tuple[str, int]]
) -> None:
    scene = Scene(job_of(workers, max_restarts))
    live: set[int] = set()  # attempts whose workers were started and not yet ended
    timers: list[SetTimer] = []
    for kind, rank in [*happenings, *[("ends", r % workers) for r in range(8 * workers)]]:
        if isinstance(scene.job.state, TERMINAL):
            break
        commands: list[Command] = []
        if scene.job.state_name in ("QUEUED", "WAITING"):
            assert not live
            before = len(scene.commands)
            counts = {order.environment["TORCHELASTIC_RESTART_COUNT"] for order in scene.run(workers)}
            assert counts == {str(scene.job.training.restarts)}
            commands = scene.commands[before:]
        elif scene.job.state_name == "RECOVERING":
            live.clear()
            commands = scene.play(AttemptEnded(scene.job.attempt))
        else:
            scene.now += 1.0
            commands = scene.play(*messages_of(scene, kind, rank % workers))
            due, timers = timers, []
            for timer in due:
                if getattr(timer.event, "waiting_for", "") in (FAILURES, LEAVING):
                    commands += scene.play(timer.event)
        for command in commands:
            if isinstance(command, StartWorkers):
                assert not live
                live.add(command.attempt)
            if isinstance(command, Send | StopWorkers):
                assert command.attempt == scene.job.attempt
            if isinstance(command, Send) and isinstance(command.message, SaveOutput):
                commands += scene.play(Answer(scene.job.attempt, 0, OutputSaved(blob=None)))
            if isinstance(command, Send) and isinstance(command.message, GiveUp):
                commands += scene.play(Answer(scene.job.attempt, command.rank, TERMINATED))
            if isinstance(command, SetTimer):
                timers.append(command)
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
    if not happenings:
        assert isinstance(ended.state, Succeeded)


def test_a_cancelled_script_may_save_before_its_workers_stop() -> None:
    scene = running()
    scene.says(1, OK)
    assert asked_to_end(scene.play(CancelRequested())) == [0]
    scene.says(0, Reported(step=9, values={}))
    assert scene.job.training.step == 9
    assert StopWorkers(1) in scene.play(Answer(1, 0, TERMINATED))
    assert scene.job.state == Cancelled()


def test_a_script_that_has_ended_keeps_its_places_until_its_output_is_saved() -> None:
    scene = running()
    scene.says(0, OK)
    scene.says(1, OK)
    assert scene.play(NodeDraining("n1"), Preempted(1, "job-2", "a higher priority")) == []
    scene.says(0, OutputSaved(blob=None))
    assert isinstance(scene.job.state, Succeeded)


def test_a_script_that_leaves_its_places_can_still_be_cancelled_and_lose_workers() -> None:
    scene = running()
    scene.play(NodeDraining("n1"))
    assert asked_to_end(scene.play(CancelRequested())) == []
    commands = scene.play(Lost(1, 1, "signal 9"), Lost(1, 0, "signal 9"))
    assert StopWorkers(1) in commands
    assert scene.job.state == Cancelled()


@pytest.mark.parametrize("attempt", [0, 3])
def test_a_restarted_master_finds_the_script_in_the_queue_with_its_count(attempt: int) -> None:
    before = job_of(max_restarts=2)
    progress = before.training.model_copy(update={"restarts": 1, "step": 5})
    job, _ = scripts.resumed("job", before.submission, attempt, 1.5, progress, places(2) if attempt else None)
    assert job.state_name == ("WAITING" if attempt else "QUEUED")
    assert (job.training, job.attempt, job.nodes) == (progress, attempt, ("n0", "n1") if attempt else ())
    assert Scene(job).run()[0].environment["TORCHELASTIC_RESTART_COUNT"] == "1"
    assert isinstance(scripts.step(job, Planned(places(2)), 0.0)[0].state, ScriptStarting)


def test_a_worker_is_told_what_to_set_up_when_it_says_hello() -> None:
    scene = Scene(job_of())
    scene.play(Planned(places(2)))
    sent = scene.says(1, WorkerHello(pid=1, address="host1"))
    assert sent == [Send(1, 1, ScriptSetup(submission=scene.job.submission))]
