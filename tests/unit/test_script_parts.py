"""The plain parts of a script's way: what is refused, what it reports, how its end is told, where its ranks are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import paceline as pl
from paceline.client.scripts import prepare_script
from paceline.master.torchrun import environment
from paceline.plan import Placement
from paceline.planner.scripts import plan_script
from paceline.reports import REPORTS_FILE, ReportReader
from paceline.script import ScriptOptions, ScriptSubmission
from paceline.training.activity import WINDOW_S, Activity, processor_s
from paceline.training.scripterror import script_error

from builders import node


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "train.py").write_text("print(1)")
    return tmp_path / "project"


def prepared(project: Path, tmp_path: Path, **fields: Any) -> ScriptSubmission:
    found = prepare_script(
        pl.ScriptSpec(**{"command": ("train.py",), "workdir": project, **fields}), tmp_path
    ).submission
    assert isinstance(found, ScriptSubmission)
    return found


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"command": ("missing.py",)}, "no script missing.py"),
        ({"command": ("../train.py",)}, "no script"),
        ({"command": ("bash", "run.sh")}, "not a Python script"),
        ({"command": ("-m",)}, "names no module"),
        ({"command": ()}, "not a Python script"),
        ({"workdir": Path("/nowhere")}, "no script"),
        ({"requirements": "missing.txt"}, "no requirements file"),
        ({"requirements": ("numpy", "-r base.txt")}, "line 2"),
        ({"requirements": ("-e .",)}, "names a file of this machine"),
        ({"outputs": "../elsewhere"}, "no folder inside the project"),
        ({"outputs": "/tmp"}, "no folder inside the project"),
        ({"outputs": "."}, "no folder inside the project"),
        ({"max_restarts": -1}, "max_restarts"),
        ({"hang_timeout": 5}, "hang_timeout"),
        ({"hang_timeout": "soon"}, "not a duration"),
        ({"min_workers": 2}, "more than the 1 workers"),
        ({"env": {"RANK": "0"}}, "sets RANK"),
        ({"env": {"TORCHELASTIC_RUN_ID": "mine"}}, "sets TORCHELASTIC_RUN_ID"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_what_can_not_be_run_is_refused_before_anything_is_sent(
    project: Path, tmp_path: Path, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(pl.InvalidSpec, match=says):
        prepared(project, tmp_path, **fields)


def test_a_submission_survives_the_wire_and_takes_the_projects_requirements(project: Path, tmp_path: Path) -> None:
    assert prepared(project, tmp_path).options.requirements == ""
    (project / "requirements.txt").write_text("einops>=0.8\n")
    sent = prepared(project, tmp_path, env={"A": "b"}, resources=pl.Resources(workers=3))
    assert sent.options.requirements == "einops>=0.8\n"
    assert ScriptSubmission.model_validate_json(sent.model_dump_json()) == sent
    assert prepared(project, tmp_path, requirements=()).options.requirements == ""
    assert sent.blobs == (sent.project,)


# ---- reports ----


def test_outside_a_job_a_report_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REPORTS_FILE, raising=False)
    pl.report(step=1, loss=float("nan"), anything=object())


def test_reports_are_read_once_newest_of_each_name_and_torn_or_foreign_lines_wait_or_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "reports"
    monkeypatch.setenv(REPORTS_FILE, str(path))
    reader = ReportReader()
    assert reader.read(str(path)) == (None, {})
    pl.report(step=1, loss=0.5, accuracy=0.1)
    pl.report(step=2, loss=0.25)
    assert reader.read(str(path)) == (2, {"loss": 0.25, "accuracy": 0.1})
    assert reader.read(str(path)) == (None, {})
    with path.open("a") as file:
        file.write('nonsense\n[1]\n{"values": {"a": "x", "b": 2}, "step": -1}\n{"step": 3, "val')
    assert reader.read(str(path)) == (None, {"b": 2.0})
    with path.open("a") as file:
        file.write('ues": {"loss": 1}}\n')
    assert reader.read(str(path)) == (3, {"loss": 1.0})


def test_a_report_of_something_that_is_no_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REPORTS_FILE, str(tmp_path / "reports"))
    with pytest.raises(pl.InvalidSpec, match=r"model= of paceline\.report is a list"):
        pl.report(model=[1, 2])


# ---- ends ----


def printed_by(code: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_a_scripts_last_exception_is_told_as_its_own() -> None:
    code = "print('before')\ntry:\n    1/0\nexcept Exception as e:\n    raise KeyError('a\\nb') from e"
    error = script_error(*printed_by(code))
    assert error.fact == "the script raised KeyError: 'a\\nb'"
    assert error.details["type"] == "KeyError"
    assert error.traceback.startswith("Traceback (most recent call last):\n")
    assert "before" not in error.traceback


def test_an_exception_is_told_without_the_rank_that_torch_puts_before_its_lines() -> None:
    plain = printed_by("raise KeyError('x')")[1]
    printed = "epoch 1\n" + "".join(f"[rank1]: {line}\n" for line in plain.splitlines())
    error = script_error(1, printed)
    assert (error.fact, error.traceback) == ("the script raised KeyError: 'x'", plain)


def test_an_exit_code_without_an_exception_and_a_signal_are_told_with_the_last_lines() -> None:
    error = script_error(*printed_by("print('no GPU here'); raise SystemExit(3)"))
    assert (error.fact, error.traceback) == ("the script ended with exit code 3.", "no GPU here")
    assert "signal 9 (SIGKILL)" in script_error(-9, "epoch 3\n").fact
    assert script_error(1, "").traceback == ""


def test_the_stacks_of_an_aborted_script_are_told_of_all_its_threads() -> None:
    code = (
        "import faulthandler, os, threading\nfaulthandler.enable()\nprint('epoch 1')\nstarted = threading.Event()\n"
        "def waits():\n    started.set(); threading.Event().wait()\n"
        "threading.Thread(target=waits, daemon=True).start(); started.wait(); os.abort()"
    )
    error = script_error(*printed_by(code))
    assert error.fact == "the script was ended by signal 6 (SIGABRT)."
    assert "line 6 in waits" in error.traceback
    assert "line 7 in <module>" in error.traceback
    assert "epoch 1" not in error.traceback


# ---- progress ----


@given(st.floats(0, 0.0099), st.floats(0.0101, 4), st.integers(1, 400))
def test_a_trifle_of_the_processor_is_no_progress_and_more_of_it_is(idle: float, busy: float, looks: int) -> None:
    for cores, moves in ((idle, False), (busy, True)):
        clock = [0.0]
        activity = Activity(0.0, 10, lambda: clock[0] * cores)  # noqa: B023
        seen = False
        for _ in range(looks):
            clock[0] += 0.5
            seen |= activity.moved(clock[0], 10)
        assert seen == (moves and clock[0] >= WINDOW_S)


def test_what_is_printed_is_progress_once() -> None:
    activity = Activity(0.0, 10, lambda: 0.0)
    assert [activity.moved(at, printed) for at, printed in ((0.5, 10), (1.0, 11), (1.5, 11), (8.0, 12))] == [
        False, True, False, True,
    ]  # fmt: skip


def test_the_processor_time_of_a_process_counts_what_is_below_it_and_stays_when_that_ends() -> None:
    work = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    code = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}]); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert processor_s(process.pid) >= 0.3
        process.communicate()
    assert processor_s(process.pid) == 0.0


# ---- places ----


@given(st.lists(st.integers(1, 8), min_size=1, max_size=5), st.integers(1, 20))
def test_ranks_fill_nodes_in_a_row_and_know_their_places(cores: list[int], ranks: int) -> None:
    nodes = [node(f"n{at}", cores=count, hardware_class=f"class {at}") for at, count in enumerate(cores)]
    options = ScriptOptions(command=("train.py",), resources=pl.Resources(workers=ranks))
    if ranks > sum(cores):
        with pytest.raises(pl.Unplaceable):
            plan_script(nodes, options)
        return
    plan = plan_script(nodes, options)
    told = [environment(plan.workers, rank, ("host", 1), "job", (0, 3)) for rank in range(ranks)]
    assert [(e["RANK"], e["ROLE_RANK"], e["WORLD_SIZE"]) for e in told] == [
        (str(r), str(r), str(ranks)) for r in range(ranks)
    ]
    groups = [int(e["GROUP_RANK"]) for e in told]
    assert groups == sorted(groups)
    for group in range(int(told[0]["GROUP_WORLD_SIZE"])):
        locals_ = [e for e in told if e["GROUP_RANK"] == str(group)]
        assert [e["LOCAL_RANK"] for e in locals_] == [str(at) for at in range(len(locals_))]
        assert {e["LOCAL_WORLD_SIZE"] for e in locals_} == {str(len(locals_))}
    assert "microbatches" not in plan.explain()


def test_with_min_workers_a_script_starts_on_what_there_is() -> None:
    options = ScriptOptions(command=("train.py",), resources=pl.Resources(workers=8), min_workers=2)
    plan = plan_script([node("a", cores=2), node("b", cores=1)], options)
    assert (len(plan.workers), plan.summary) == (3, "3 ranks on 2 nodes, of the 8 asked for: no more are free")
    with pytest.raises(pl.Unplaceable, match="2 worker"):
        plan_script([node("a", cores=1)], options)


def test_a_restart_takes_the_nodes_again_on_which_the_script_wrote_and_others_only_where_it_must() -> None:
    options = ScriptOptions(command=("train.py",), resources=pl.Resources(workers=3))
    small, large = node("a", cores=2), node("z", cores=2)
    again = plan_script([node("big", cores=8), small, large], options, former=("z", "a"))
    assert [worker.node_id for worker in again.workers] == ["z", "a", "a"]
    moved = plan_script([node("big", cores=8), small], options, former=("z", "a"))
    assert [worker.node_id for worker in moved.workers] == ["big"] * 3


def test_a_rank_sees_all_devices_of_its_node_so_that_its_local_rank_is_an_index_of_them() -> None:
    places = [
        Placement(rank=rank, node_id=name, node_name=name, device=device, share=(rank, rank + 1))
        for rank, (name, device) in enumerate([("a", "cuda:1"), ("a", "cuda:3"), ("b", "cuda:0")])
    ]
    found = [environment(places, rank, ("host", 1), "job", (0, 0)) for rank in range(3)]
    assert [(e["LOCAL_RANK"], e["CUDA_VISIBLE_DEVICES"]) for e in found] == [("0", "1,3"), ("1", "1,3"), ("0", "0")]


def test_thousands_of_ranks_start_on_what_there_is_and_more_than_can_be_planned_are_refused() -> None:
    options = ScriptOptions(command=("train.py",), resources=pl.Resources(workers=4000), min_workers=1)
    assert len(plan_script([node("a", cores=2), node("b", cores=3)], options).workers) == 5
    with pytest.raises(pl.InvalidSpec, match="workers=5000 were asked for; 4,096 are the most"):
        ScriptOptions(command=("train.py",), resources=pl.Resources(workers=5000))
