"""A script's way through the master and back: what travels, what is installed, what is seen, what is kept."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

import paceline as pl

from helpers import running_master, wait_until, whole_log

LOUD = """
import os, time
import paceline
from pathlib import Path
Path("results").mkdir()
for step in range(1, 4):
    paceline.report(step=step, loss=1 / step)
print("files", sorted(str(p) for p in Path(".").rglob("*") if p.is_file()))
while not Path(os.environ["SEEN"]).exists():
    time.sleep(0.01)
paceline.report(step=4, loss=0.25, rank=int(os.environ["RANK"]))
Path("results/model.txt").write_text(os.environ["GREETING"])
"""
WITH_PARTS = "import tinypart, torch, paceline; print('part', tinypart.VALUE, torch.__name__)"
FAILS_AT_HOME = """
import os, time
from pathlib import Path
if os.environ["RANK"] == "0":
    Path("outputs").mkdir()
    Path("outputs/checkpoint").write_text("epoch 7")
    print("written", flush=True)
    time.sleep(600)
while not Path("outputs/checkpoint").exists():
    time.sleep(0.01)
raise RuntimeError("out of luck")
"""


def project(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_a_script_is_sent_without_what_git_ignores_seen_by_its_reports_and_leaves_its_output(
    client: pl.Client, tmp_path: Path
) -> None:
    (tmp_path / "project" / "data").mkdir(parents=True)
    folder = project(tmp_path / "project", train=LOUD, helper="")
    (folder / "data" / "secret.bin").write_text("x")
    (folder / ".gitignore").write_text("data/\n")
    seen = tmp_path / "seen"
    env = {"GREETING": "hi", "SEEN": str(seen)}
    job = client.run("train.py", workdir=folder, outputs="results", env=env, name="loud")
    wait_until(lambda: 3 in [event.data["step"] for event in job.events_so_far() if event.kind == "reported"])
    seen.touch()
    assert job.output(tmp_path / "out", timeout=120) == tmp_path / "out"
    assert (tmp_path / "out" / "model.txt").read_text() == "hi"
    assert "[1.0] files ['.gitignore', 'helper.py', 'train.py']" in whole_log(job)
    reports = [event.data for event in job.events_so_far() if event.kind == "reported"]
    assert (3, 1 / 3) in [(report["step"], report["values"]["loss"]) for report in reports]
    assert (reports[-1]["step"], reports[-1]["values"]) == (4, {"loss": 0.25, "rank": 0.0})
    info = job.info()
    assert (info["kind"], info["step"], info["history"]) == ("script", 4, [{"step": 4.0, "loss": 0.25, "rank": 0.0}])
    with pytest.raises(pl.Conflict, match="already"):
        job.output(tmp_path / "out")
    with pytest.raises(pl.Conflict, match="runs a script"):
        job.result()
    with pytest.raises(pl.Conflict, match="fixed"):
        client.run("train.py", workdir=folder, outputs="results").scale(2)


def test_a_job_that_has_ended_leaves_nothing_of_a_script_on_the_node(client: pl.Client, tmp_path: Path) -> None:
    job = client.run("train.py", workdir=project(tmp_path, train="import os; print('in', os.getcwd())"))
    assert job.output(tmp_path / "out", timeout=120) is None
    folder = Path(whole_log(job).split("in ")[1].strip())
    wait_until(lambda: not folder.exists() and not folder.parent.exists())


def wheel(folder: Path, version: str, value: str) -> Path:
    """A package of one module, as a wheel that pip installs without any index."""
    path = folder / f"tinypart-{version}-py3-none-any.whl"
    info = f"tinypart-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tinypart.py", f"VALUE = {value!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tinypart\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.mark.slow
def test_requirements_are_installed_once_a_node_for_each_text_and_the_nodes_own_packages_stay(
    client: pl.Client, tmp_path: Path
) -> None:
    folder = project(tmp_path, train=WITH_PARTS)
    one, two = (
        f"tinypart @ {wheel(tmp_path, version, value).as_uri()}" for version, value in (("1.0", "a"), ("2.0", "b"))
    )
    (folder / ".gitignore").write_text("*.whl\n")
    logs = []
    for requirements in (one, one, two):
        job = client.run(
            "train.py", workdir=folder, requirements=(requirements, "torch", "numpy"), resources=pl.Resources(workers=2)
        )
        assert job.output(tmp_path / job.id, timeout=180) is None
        logs.append(whole_log(job))
    assert [log.count("Successfully installed tinypart") for log in logs] == [1, 0, 1]
    assert [log.count("Collecting torch") + log.count("Collecting numpy") for log in logs] == [0, 0, 0]
    assert [log.count(f"part {value} torch") for log, value in zip(logs, "aab", strict=True)] == [2, 2, 2]
    missing = f"tinypart @ {(tmp_path / 'gone-1.0-py3-none-any.whl').as_uri()}"
    job = client.run("train.py", workdir=folder, requirements=(missing,))
    with pytest.raises(pl.InvalidSpec, match="pip could not install the requirements"):
        job.output(tmp_path / "x", timeout=120)


WAITS = """
import signal, sys, time
from pathlib import Path
Path("outputs").mkdir(exist_ok=True)
Path("outputs/epoch").write_text("7")
print(*range(30_000), sep="\\n")
print("written", flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
time.sleep(600)
"""


@pytest.mark.slow
def test_what_a_script_wrote_is_kept_where_it_is_cancelled_while_it_waits_for_room(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    with running_master(tmp_path / "master", cores=3, log_bytes=300_000) as client:
        wait_until(lambda: len(client.nodes()) == 1)
        job = client.run("train.py", workdir=project(tmp_path / "project", train=WAITS))
        wait_until(lambda: "written" in job.logs())
        client.drain(client.nodes()[0].id)
        wait_until(lambda: job.state == "WAITING")
        assert job.workers() == []
        job.cancel()
        assert job.wait(60) == "CANCELLED"
        assert job.output(tmp_path / "out", partial=True) == tmp_path / "out"
        assert (tmp_path / "out" / "epoch").read_text() == "7"
        log = job.logs()
        assert "bytes are left out here" in log.splitlines()[0]
        assert log.endswith("[1.0] 29999\n[1.0] written\n")
        assert len(log) < 300_200


TENSORBOARD = """
import time
from torch.utils.tensorboard import SummaryWriter
with SummaryWriter(flush_secs=1) as writer:
    for step in range(1, 5):
        writer.add_scalar("loss/train", 1 / step, step)
        writer.add_scalar("accuracy", 0.2 * step, step, new_style=True)
        writer.add_text("note", "no scalar", step)
        writer.flush()
        time.sleep(0.6)
"""


@pytest.mark.slow
def test_the_scalars_that_a_script_writes_for_tensorboard_are_seen_while_it_runs(
    client: pl.Client, tmp_path: Path
) -> None:
    job = client.run("train.py", workdir=project(tmp_path, train=TENSORBOARD))
    assert job.wait(120) == "SUCCEEDED", whole_log(job)
    reports = [event.data for event in job.events_so_far() if event.kind == "reported"]
    assert len(reports) > 1
    assert [report["step"] for report in reports] == sorted(report["step"] for report in reports)
    history = job.info()["history"]
    assert history == [{"step": 4.0, "loss/train": 0.25, "accuracy": pytest.approx(0.8)}]


def test_what_a_script_had_written_when_it_failed_is_kept(client: pl.Client, tmp_path: Path) -> None:
    job = client.run("train.py", workdir=project(tmp_path, train=FAILS_AT_HOME), resources=pl.Resources(workers=2))
    with pytest.raises(pl.UserCodeError, match="out of luck") as raised:
        job.output(tmp_path / "out", timeout=120)
    assert raised.value.details["rank"] == 1
    assert not (tmp_path / "out").exists()
    assert job.output(tmp_path / "out", partial=True) == tmp_path / "out"
    assert (tmp_path / "out" / "checkpoint").read_text() == "epoch 7"


def test_a_script_that_asks_for_more_than_there_is_is_refused_with_the_numbers(
    client: pl.Client, tmp_path: Path
) -> None:
    folder = project(tmp_path, train="")
    with pytest.raises(pl.Unplaceable, match="50 worker"):
        client.run("train.py", workdir=folder, resources=pl.Resources(workers=50))
    plan = client.plan_script(pl.ScriptSpec(command=("train.py",), workdir=folder, resources=pl.Resources(workers=3)))
    assert (plan.mode, len(plan.workers), plan.summary) == ("script", 3, "3 ranks on 1 node, as asked for")


def test_the_same_request_id_twice_is_one_script(client: pl.Client, tmp_path: Path) -> None:
    spec = pl.ScriptSpec(command=("train.py",), workdir=project(tmp_path, train="print('once')"))
    first, again = (client.submit_script(spec, request_id=f"request {os.getpid()}") for _ in range(2))
    assert first.id == again.id
    assert first.wait(120) == "SUCCEEDED"
    assert whole_log(first) == "[1.0] once\n"


def test_users_code_sees_no_secret_of_the_master_or_of_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PACELINE_TOKEN", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "a secret")
    with running_master(tmp_path, cores=2) as client:
        wait_until(lambda: len(client.nodes()) == 1)
        found = client.call(lambda: dict(os.environ)).returned(timeout=120)[0]
    assert [name for name in found if name.startswith(("PACELINE_", "RAY_"))] == ["PACELINE_REPORTS"]
    assert "a secret" not in found.values()
