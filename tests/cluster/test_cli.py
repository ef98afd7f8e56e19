"""The command line, end to end: every command as a process of its own, against one `paceline up`."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from paceline.digest import model_digest

from helpers import ended, wait_until
from workloads import digits

PACELINE = Path(sysconfig.get_path("scripts")) / "paceline"
NOBODY = "http://127.0.0.1:9"

BESIDE = """
import torch

def accuracy(outputs, targets):
    return (outputs.argmax(1) == targets).float().mean()

def build():
    print("built by a worker")
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
"""
JOB = """
from functools import partial
from pathlib import Path
import numpy as np
import torch
import paceline as pl
from beside import accuracy, build

print("said by the file")
data = np.load(Path(__file__).parent / "digits.npz")
spec = pl.TrainSpec(
    name="digits [cli]", model=build, train_data=(data["x"], data["y"]), val_data=(data["val_x"], data["val_y"]),
    loss=torch.nn.functional.cross_entropy, optimizer=partial(torch.optim.AdamW, lr=5e-3), batch_size=64,
    metrics={"accuracy": accuracy}, stop=pl.MaxEpochs(5),
)
"""
SCRIPT = """
import os, sys
from pathlib import Path
import paceline
if len(sys.argv) < 3:
    raise KeyError("nobody to greet")
print("hello", sys.argv[2], "from", os.environ["RANK"], "of", os.environ["WORLD_SIZE"])
paceline.report(step=3, loss=0.5)
if os.environ["RANK"] == "0":
    Path("outputs").mkdir()
    Path("outputs/greeting").write_text(sys.argv[2])
"""
FILES = {
    "project/hello.py": SCRIPT,
    "beside.py": BESIDE,
    "job.py": JOB,
    "endless.py": "from job import *\nspec = spec.model_copy(update={'stop': pl.MaxEpochs(100_000)})\n",
    "faulty_model.py": "from job import *\ndef build():\n    raise KeyError('the model is at fault')\n"
    "spec = spec.model_copy(update={'model': build})\n",
    "faulty_file.py": "def read():\n    raise KeyError('the file is at fault')\n\nread()\n",
    "no_spec.py": "specification = None\n",
    "other_spec.py": "spec = {'model': None}\n",
    "json.py": JOB,
}


@dataclass
class Run:
    code: int
    out: str
    err: str


@dataclass
class Shell:
    """A user's terminal in `folder`, with a configuration and data folder of its own."""

    folder: Path
    env: dict[str, str]

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [PACELINE, *arguments], cwd=self.folder, env=self.env, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: str) -> Run:
        process = self.popen(*arguments)
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
        return Run(process.returncode, out, err)

    def json(self, *arguments: str) -> Any:
        """The one document that a command prints."""
        done = self.run(*arguments, "--json")
        assert done.code == 0, done.out + done.err
        return json.loads(done.out)

    def error(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """(exit code, error) of a command that must fail, with nothing else on stdout."""
        done = self.run(*arguments, "--json")
        assert "Traceback" not in done.err
        return done.code, json.loads(done.out)["error"]


def shell_in(folder: Path) -> Shell:
    """A shell whose folder holds the spec files."""
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (x, y), (val_x, val_y) = digits()
    np.savez(folder / "digits.npz", x=x, y=y, val_x=val_x, val_y=val_y)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PACELINE_")}
    return Shell(folder, {**env, "XDG_CONFIG_HOME": str(folder / "config"), "XDG_DATA_HOME": str(folder / "data")})


@contextlib.contextmanager
def started(shell: Shell, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A command that runs until a signal, and the document that it prints once it serves."""
    process = shell.popen(*arguments, "--json")
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield process, json.loads(line)
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(scope="module", autouse=True)
def _ctrl_c() -> Iterator[None]:
    """A run in the background ignores Ctrl-C, and the commands would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return shell_in(tmp_path_factory.mktemp("cli") / "user")


@pytest.fixture(scope="module")
def up(shell: Shell) -> Iterator[dict[str, Any]]:
    """What a master with a node of four places told when it served."""
    with started(shell, "up", "--port", "0", "--cores", "4") as (_, told):
        yield told


@pytest.fixture(scope="module")
def trained(shell: Shell, up: dict[str, Any]) -> dict[str, Any]:
    """What `train` told of a job on one worker."""
    told: dict[str, Any] = shell.json("train", "job.py", "--workers", "1", "-o", "models/one.safetensors")
    return told


def test_up_logs_its_user_in_and_tells_the_exact_join_line(shell: Shell, up: dict[str, Any]) -> None:
    assert up["url"].startswith("http://127.0.0.1:")
    assert Path(up["folder"]) == shell.folder / "data" / "paceline"
    assert shlex.split(up["join"]) == ["paceline", "join", up["url"], "--token", up["node_token"]]
    kept = Path(up["login"])
    assert json.loads(kept.read_text()) == {"url": up["url"], "token": up["token"], "ca": None}
    assert kept.stat().st_mode & 0o777 == 0o600


def test_login_keeps_a_good_token_and_leaves_the_old_login_where_the_new_one_is_bad(
    shell: Shell, up: dict[str, Any]
) -> None:
    told = shell.json("login", up["url"] + "/", "--token", up["token"])
    assert (told["url"], told["nodes"]) == (up["url"], 1)
    before = Path(told["login"]).read_text()
    assert shell.error("login", up["url"], "--token", "wrong")[0] == 3
    code, error = shell.error("login", up["url"], "--token", up["node_token"])
    assert (code, error["code"]) == (3, "forbidden")
    assert shell.error("login", NOBODY, "--token", up["token"])[0] == 5
    assert shell.error("login", "127.0.0.1:9", "--token", up["token"])[1]["code"] == "invalid_spec"
    assert Path(told["login"]).read_text() == before


def test_nodes_shows_the_masters_own_node_with_its_cores(shell: Shell, up: dict[str, Any]) -> None:
    (node,) = shell.json("nodes")
    assert (node["is_master"], node["cores"], node["free_cores"]) == (True, 4, 4)
    assert "4 of 4" in shell.run("nodes").out


def test_plan_tells_the_nodes_and_the_reasons_and_trains_nothing(shell: Shell, up: dict[str, Any]) -> None:
    before = shell.json("jobs")
    plan = shell.json("plan", "job.py", "--workers", "3")
    (node,) = plan["chosen"]["nodes"]
    assert (plan["decision"]["answer"], plan["chosen"]["mode"], node["share"]) == ("granted", "exact", [0, 8])
    for predicted in (plan["chosen"]["predicted"], node["predicted"]):
        assert all(predicted[name] > 0 for name in ("step_s", "finish_s", "memory_bytes"))
        assert "traffic_bytes_per_step" in predicted
    assert plan["rejected"] == []
    code, error = shell.error("plan", "job.py", "--workers", "5")
    assert (code, error["code"], error["details"]["counter"]) == (6, "unplaceable", {"resources": {"workers": 3}})
    code, error = shell.error("plan", "job.py", "--deadline", "0.01")
    assert (code, error["details"]["counter"]["deadline"] > 0.01) == (6, True)
    assert shell.json("jobs") == before


def test_train_delivers_a_model_with_its_digest_and_its_description(shell: Shell, trained: dict[str, Any]) -> None:
    model = shell.folder / "models" / "one.safetensors"
    assert trained["state"] == "SUCCEEDED"
    assert Path(trained["model"]) == model
    assert model_digest(model) == trained["digest"]
    assert trained["history"][-1]["val_accuracy"] > 0.9
    description = json.loads(model.with_suffix(".json").read_text())
    assert description["digest"] == trained["digest"]
    assert description["ledger"] == [{"epoch": e, "expected": 1437, "committed": 1437, "twice": 0} for e in range(5)]


def test_train_for_people_shows_curve_digest_and_file_and_gives_the_same_model_on_two_workers(
    shell: Shell, trained: dict[str, Any]
) -> None:
    done = shell.run("train", "job.py", "--workers", "2", "--name", "two")
    assert done.code == 0, done.err
    assert "said by the file" in done.out
    assert "epoch 5.00" in done.out
    assert trained["digest"] in done.out
    newest = shell.json("jobs")[0]
    assert (newest["name"], newest["state"]) == ("two", "SUCCEEDED")
    assert model_digest(shell.folder / f"{newest['id']}.safetensors") == trained["digest"]


@pytest.mark.slow
def test_options_override_the_fields_of_the_file(shell: Shell, trained: dict[str, Any]) -> None:
    told = shell.json(
        "train", "job.py", "--max-epochs", "1", "--batch-size", "100", "--seed", "3", "-o", "x.safetensors"
    )
    assert told["stop_reason"].startswith("MaxEpochs(1)")
    assert told["step"] == 15
    assert told["digest"] != trained["digest"]
    code, error = shell.error("train", "job.py", "--batch-size", "1438")
    assert (code, error["code"]) == (2, "invalid_spec")
    assert "1437" in error["fact"]


def test_job_and_jobs_and_logs_tell_of_a_finished_job(shell: Shell, trained: dict[str, Any]) -> None:
    job = shell.json("job", trained["id"])
    assert (job["state"], job["name"], job["stop"]) == ("SUCCEEDED", "digits [cli]", "MaxEpochs(5)")
    assert job["result"]["digest"] == trained["digest"]
    assert trained["id"] in {job["id"] for job in shell.json("jobs")}
    assert "digits [cli]" in shell.run("jobs").out
    assert trained["digest"] in shell.run("job", trained["id"]).out
    assert shell.json("logs", trained["id"]) == {"id": trained["id"], "text": "[1.0] built by a worker\n"}
    assert shell.run("logs", trained["id"], "-f").out == "[1.0] built by a worker\n"
    assert shell.error("job", "job-unknown")[0] == 4


def test_model_fetches_the_same_model_again(shell: Shell, trained: dict[str, Any]) -> None:
    told = shell.json("model", trained["id"], "-o", "again.safetensors")
    assert told["digest"] == trained["digest"]
    assert model_digest(shell.folder / "again.safetensors") == trained["digest"]
    assert json.loads((shell.folder / "again.json").read_text())["digest"] == trained["digest"]


def test_a_detached_job_goes_on_until_it_is_cancelled_and_then_has_no_model(shell: Shell, up: dict[str, Any]) -> None:
    job_id = shell.json("train", "endless.py", "--detach")["id"]
    code, error = shell.error("model", job_id)
    assert (code, error["code"]) == (20, "conflict")
    assert shell.json("cancel", job_id) == {"id": job_id, "state": "CANCELLED"}
    assert "had already ended" in shell.run("cancel", job_id).out
    assert shell.error("model", job_id)[0] == 12
    assert shell.error("output", job_id)[1]["remedy"] == f"Fetch its `paceline model {job_id}`."


def test_run_shows_what_a_script_prints_and_fetches_its_output(shell: Shell, up: dict[str, Any]) -> None:
    done = shell.run("run", "--workers", "2", "--workdir", "project", "--", "hello.py", "--name", "you")
    assert done.code == 0, done.err
    assert "[1.1] hello you from 1 of 2" in done.out
    job = shell.json("jobs")[0]
    assert (job["kind"], job["state"], job["history"]) == ("script", "SUCCEEDED", [{"step": 3.0, "loss": 0.5}])
    assert (shell.folder / f"{job['id']}-output" / "greeting").read_text() == "you"
    assert shell.run("logs", job["id"], "--rank", "1").out == "[1.1] hello you from 1 of 2\n"
    told = shell.json("output", job["id"], "-o", "again", "--rank", "1")  # on the same node as rank 0
    assert (shell.folder / "again" / "greeting").read_text() == "you"
    assert told == {
        "id": job["id"], "state": "SUCCEEDED", "output": str(shell.folder / "again"), "values": {"loss": 0.5},
        "seconds": told["seconds"],
    }  # fmt: skip
    shown = shell.json("job", job["id"])
    assert (shown["command"], shown["result"]["folder"]) == ("hello.py --name you", "outputs")
    assert "hello.py --name you" in shell.run("job", job["id"]).out
    assert shell.error("output", job["id"], "-o", "again")[1]["code"] == "usage"
    assert shell.error("model", job["id"])[1]["code"] == "conflict"


@pytest.mark.slow
def test_run_ends_with_the_traceback_of_the_rank_that_failed(shell: Shell, up: dict[str, Any]) -> None:
    def refused(*arguments: str) -> tuple[int, dict[str, Any]]:  # a --json at the end would be the script's
        done = shell.run("run", "--json", "--workdir", "project", *arguments)
        return done.code, json.loads(done.out)["error"]

    code, error = refused("--max-restarts", "1", "--", "hello.py", "--json")
    assert (code, error["code"], error["details"]["rank"]) == (8, "user_code", 0)
    assert "KeyError: 'nobody to greet'" in error["details"]["traceback"]
    assert shell.json("job", error["details"]["job_id"])["attempt"] == 2
    assert refused("missing.py")[1]["code"] == "invalid_spec"
    assert refused("--env", "A", "hello.py")[1]["code"] == "usage"


def workers_of(shell: Shell, job_id: str) -> list[str]:
    """The nodes of the workers that the job's plan names, one for each."""
    return [worker["node_id"] for worker in (shell.json("job", job_id)["plan"] or {"workers": []})["workers"]]


@pytest.mark.slow
def test_scale_changes_the_number_of_workers_and_is_refused_where_it_can_not(shell: Shell, up: dict[str, Any]) -> None:
    job_id = shell.json("train", "endless.py", "--detach", "--workers", "1")["id"]
    told = shell.json("scale", job_id, "2")
    assert (told["id"], told["workers"]) == (job_id, 2)
    wait_until(lambda: len(workers_of(shell, job_id)) == 2)
    assert f"{job_id} trains with 1 worker from its next round on" in shell.run("scale", job_id, "1").out
    wait_until(lambda: len(workers_of(shell, job_id)) == 1)
    assert shell.error("scale", job_id, "9")[1]["code"] == "invalid_spec"
    assert shell.error("scale", job_id, "0")[1]["code"] == "usage"
    assert shell.error("scale", "job-unknown", "1")[0] == 4
    assert shell.json("cancel", job_id)["state"] == "CANCELLED"
    assert shell.error("scale", job_id, "1")[1]["code"] == "conflict"


@pytest.mark.slow
def test_drain_moves_a_job_to_another_node_and_names_a_node_that_is_not_there(shell: Shell, up: dict[str, Any]) -> None:
    join = [*shlex.split(up["join"])[1:], "--name", "leaving", "--cores", "2"]
    other = shell.json("train", "endless.py", "--detach", "--workers", "3")["id"]  # all places that there are
    wait_until(lambda: len(workers_of(shell, other)) == 3)
    with started(shell, *join):
        wait_until(lambda: "leaving" in {node["id"] for node in shell.json("nodes")})
        job_id = shell.json("train", "endless.py", "--detach", "--workers", "1")["id"]
        wait_until(lambda: shell.json("job", job_id)["state"] == "RUNNING")
        assert workers_of(shell, job_id) == ["leaving"]
        assert shell.json("cancel", other)["state"] == "CANCELLED"
        assert shell.json("drain", "leaving") == {"node": "leaving", "draining": True}
        wait_until(lambda: workers_of(shell, job_id) not in ([], ["leaving"]))
        assert "leaving (draining)" in shell.run("nodes").out
        assert shell.json("job", job_id)["attempt"] == 1
        assert shell.json("cancel", job_id)["state"] == "CANCELLED"
    assert shell.error("drain", "leaving-not")[1]["code"] == "not_found"
    wait_until(lambda: len(shell.json("nodes")) == 1)


@pytest.mark.slow
def test_tokens_makes_a_users_login_which_ends_with_its_revocation(
    shell: Shell, up: dict[str, Any], trained: dict[str, Any]
) -> None:
    made = shell.json("tokens", "--add", "ann")
    assert made["token"] in made["login"]
    ann = Shell(shell.folder, {**shell.env, "PACELINE_URL": up["url"], "PACELINE_TOKEN": made["token"]})
    seen, whose = ann.json("jobs"), shell.json("jobs")
    assert [(job["id"], job["user"]) for job in seen] == [(job["id"], job["user"]) for job in whose]
    assert ann.error("tokens")[1]["code"] == ann.error("drain", "leaving")[1]["code"] == "forbidden"
    for command in ("job", "logs", "cancel", "model"):
        code, error = ann.error(command, trained["id"])
        assert (code, error["code"], error["details"]["owner"]) == (3, "forbidden", "admin")
    assert "ann" in shell.run("tokens").out
    assert shell.json("tokens", "--revoke", "ann") == {"user": "ann", "revoked": 1}
    assert ann.error("jobs")[1]["code"] == "unauthorized"
    assert shell.error("up", "--quota", "ann=core:1")[1]["code"] == "invalid_spec"


def test_ctrl_c_ends_the_watching_and_not_the_job(shell: Shell, up: dict[str, Any]) -> None:
    process = shell.popen("train", "endless.py")
    try:
        assert process.stdout is not None
        job_id = next(line for line in process.stdout if line.startswith("job ")).split()[1]
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"paceline cancel {job_id}" in err
    assert "Traceback" not in err
    assert not shell.json("job", job_id)["ended_at"]
    assert shell.json("cancel", job_id)["state"] == "CANCELLED"


def test_join_adds_a_node_that_trains_the_same_model_and_leaves_with_ctrl_c(
    shell: Shell, up: dict[str, Any], trained: dict[str, Any]
) -> None:
    join = [*shlex.split(up["join"])[1:], "--name", "second", "--cores", "4", "--price", "0.35"]
    with started(shell, *join) as (process, told):
        assert (told["name"], told["cores"]) == ("second", 4)
        wait_until(lambda: "second" in {node["id"] for node in shell.json("nodes")})
        (first, second) = sorted(shell.json("nodes", "--measure"), key=lambda node: node["id"] == "second")
        assert (first["price"], second["price"]) == (0.0, 0.35)
        assert [link["to"] for link in second["links"]] == [first["id"]]
        assert " - ".join(sorted([first["id"], "second"])) in shell.run("nodes").out
        result = shell.json("train", "job.py", "--workers", "6", "-o", "x.safetensors")
        assert len({worker["node_id"] for worker in result["plan"]["workers"]}) == 2
        assert result["digest"] == trained["digest"]
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 0
    wait_until(lambda: len(shell.json("nodes")) == 1)


def test_join_is_refused_at_once_with_a_token_that_is_no_nodes(shell: Shell, up: dict[str, Any]) -> None:
    assert shell.error("join", up["url"], "--token", "wrong")[1]["code"] == "unauthorized"
    assert shell.error("join", up["url"], "--token", up["token"])[1]["code"] == "forbidden"
    assert shell.error("join", NOBODY, "--token", up["node_token"])[1]["code"] == "master_unreachable"


def test_a_second_up_on_the_same_folder_is_refused(shell: Shell, up: dict[str, Any]) -> None:
    code, error = shell.error("up", "--port", "0")
    assert (code, error["code"]) == (15, "folder_in_use")
    assert up["folder"] in error["fact"]


def test_the_users_exception_in_the_model_comes_back_as_their_traceback(shell: Shell, up: dict[str, Any]) -> None:
    code, error = shell.error("train", "faulty_model.py")
    assert (code, error["code"], error["details"]["type"]) == (8, "user_code", "KeyError")
    assert "raise KeyError('the model is at fault')" in error["details"]["traceback"]
    assert "paceline/" not in error["details"]["traceback"]
    assert shell.json("job", error["details"]["job_id"])["state"] == "FAILED"


def test_a_file_that_gives_no_spec_is_refused_with_the_reason(shell: Shell, up: dict[str, Any]) -> None:
    done = shell.run("train", "faulty_file.py")
    assert done.code == 8
    assert 'faulty_file.py", line 4, in <module>\n    read()' in done.err
    assert "paceline/cli" not in done.err
    for file, says in (("no_spec.py", "no `spec`"), ("other_spec.py", "is a dict"), ("json.py", "module 'json'")):
        code, error = shell.error("plan", file)
        assert (code, error["code"]) == (2, "invalid_spec")
        assert says in error["fact"]


def test_a_wrong_command_line_is_told_as_json_too(shell: Shell) -> None:
    for arguments in (
        ["train", "missing.py"],
        ["train", "job.py", "--workers", "0"],
        ["train", "job.py", "--detach", "--local"],
        ["model", "job-1", "-o", "model.pt"],
        ["up", "--ray-address", "127.0.0.1:1"],
        ["up", "--tls-ca", "digits.npz"],
    ):
        code, error = shell.error(*arguments)
        assert (code, error["code"]) == (2, "usage")


def test_a_master_that_is_not_there_and_a_wrong_token_are_told_by_every_client_command(
    shell: Shell, up: dict[str, Any]
) -> None:
    away = Shell(shell.folder, {**shell.env, "PACELINE_URL": NOBODY, "PACELINE_TOKEN": "any"})
    wrong = Shell(shell.folder, {**shell.env, "PACELINE_URL": up["url"], "PACELINE_TOKEN": "wrong"})
    for arguments in (["jobs"], ["train", "job.py"], ["logs", "job-1", "-f"]):
        assert away.error(*arguments)[0] == 5
        assert wrong.error(*arguments)[0] == 3
    done = away.run("jobs")
    assert (done.code, done.out) == (5, "")
    assert NOBODY in done.err
    assert "paceline up" in done.err


def test_doctor_tells_the_isolation_and_fails_only_where_the_known_master_does_not_answer(
    shell: Shell, up: dict[str, Any]
) -> None:
    told = shell.json("doctor")
    levels = {finding["name"]: finding["level"] for finding in told["findings"]}
    assert told["ok"]
    assert (levels["master"], levels["isolation"], levels["torch"]) == ("ok", "note", "ok")
    stranger = Shell(shell.folder, {**shell.env, "XDG_CONFIG_HOME": str(shell.folder / "nowhere")})
    assert {f["name"]: f["level"] for f in stranger.json("doctor")["findings"]}["master"] == "note"
    away = Shell(shell.folder, {**shell.env, "PACELINE_URL": NOBODY, "PACELINE_TOKEN": "any"})
    done = away.run("doctor", "--json")
    assert (done.code, json.loads(done.out)["ok"]) == (5, False)


@pytest.mark.slow
def test_train_local_needs_no_master_and_leaves_none(tmp_path: Path, trained: dict[str, Any]) -> None:
    alone = shell_in(tmp_path / "alone")
    told = alone.json("train", "job.py", "--local")
    assert told["digest"] == trained["digest"]
    assert model_digest(alone.folder / f"{told['id']}.safetensors") == trained["digest"]
    assert alone.error("jobs")[0] == 5
    assert not (alone.folder / "data").exists()


@pytest.mark.slow
def test_ctrl_c_ends_up_without_a_traceback_or_a_process_and_its_jobs_are_known_again(tmp_path: Path) -> None:
    shell = shell_in(tmp_path / "user")
    with started(shell, "up", "--port", "0", "--cores", "1") as (process, _):
        job_id = shell.json("train", "endless.py", "--detach")["id"]
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
        assert process.wait(timeout=60) == 0
    wait_until(lambda: all(ended(process.pid) for process in family))
    with started(shell, "up", "--port", "0", "--cores", "1"):
        assert [(job["id"], job["ended_at"]) for job in shell.json("jobs")] == [(job_id, None)]
        assert shell.json("cancel", job_id)["state"] == "CANCELLED"
