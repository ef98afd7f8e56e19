"""Scripts that work under torchrun work unchanged, on every engine: their environment, their losses, their restarts."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import paceline as pl
from paceline.training.script import TERM_GRACE_S

from helpers import ended, wait_until, whole_log

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(params=["local", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])])
def cluster(request: pytest.FixtureRequest) -> pl.Client:
    """As for all contracts; each script starts some Pythons with torch, which on both engines would be too much."""
    found: pl.Client = request.getfixturevalue(f"{request.param}_cluster")
    return found


def run(cluster: pl.Client, script: str, *args: str, workers: int = 2, **fields: Any) -> pl.Job:
    return cluster.run(script, args, workdir=SCRIPTS, resources=pl.Resources(workers=workers), **fields)


def result(job: pl.Job, folder: Path) -> dict[str, Any]:
    """The JSON file that rank 0 left in the output folder."""
    found = job.output(folder / job.id, timeout=120)
    assert found is not None
    return json.loads((found / "result.json").read_text())


def under_torchrun(script: str, *args: str, folder: Path) -> dict[str, Any]:
    """The same, of a bare torchrun with two ranks."""
    project = folder / "bare"
    shutil.copytree(SCRIPTS, project)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, *args]
    subprocess.run(
        command, cwd=project, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True, timeout=120
    )
    return json.loads((project / "outputs" / "result.json").read_text())


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PATH", "PYTHONPATH")}


@pytest.mark.parametrize("script", [("ddp.py", "4"), pytest.param(("fsdp2.py",), marks=pytest.mark.slow)])
def test_a_script_comes_to_the_same_loss_as_under_torchrun(
    cluster: pl.Client, tmp_path: Path, script: tuple[str, ...]
) -> None:
    found = result(run(cluster, *script), tmp_path)
    assert found == under_torchrun(*script, folder=tmp_path)


@pytest.mark.slow
def test_ranks_on_two_nodes_have_the_environment_that_torchrun_gives(cluster: pl.Client) -> None:
    spec = pl.ScriptSpec(workdir=None, resources=pl.Resources(workers=6), max_restarts=2, env={"MINE": "yes"})
    job = cluster.call(environment, spec=spec)
    ranks = job.returned(timeout=120)
    assert [rank["RANK"] for rank in ranks] == ["0", "1", "2", "3", "4", "5"]
    sizes = [int(rank["LOCAL_WORLD_SIZE"]) for rank in ranks]
    assert sizes in ([4, 4, 4, 4, 2, 2], [3] * 6)
    assert [int(rank["LOCAL_RANK"]) for rank in ranks] == [*range(sizes[0]), *range(sizes[-1])]
    assert [rank["GROUP_RANK"] for rank in ranks] == ["0"] * sizes[0] + ["1"] * sizes[-1]
    shared = {
        "WORLD_SIZE": "6", "ROLE_WORLD_SIZE": "6", "GROUP_WORLD_SIZE": "2", "ROLE_NAME": "default", "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "2", "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": job.id, "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1", "MINE": "yes",
    }  # fmt: skip
    for rank in ranks:
        assert {name: rank[name] for name in shared} == shared
        assert (rank["ROLE_RANK"], rank["MASTER_PORT"]) == (rank["RANK"], ranks[0]["MASTER_PORT"])
        assert os.path.basename(rank["TORCHELASTIC_ERROR_FILE"]) == "torchelastic_error.json"


@pytest.mark.slow
def test_a_rank_that_is_killed_restarts_all_and_the_script_resumes_from_its_snapshot(
    cluster: pl.Client, tmp_path: Path
) -> None:
    whole = result(run(cluster, "ddp.py", "4"), tmp_path)
    job = run(cluster, "ddp.py", "4", "--die_at", "1", max_restarts=1)
    assert result(job, tmp_path) == {"loss": whole["loss"], "restarts": "1"}
    assert "[2.0] Resuming training from snapshot at Epoch 2" in whole_log(job)


@pytest.mark.slow
def test_a_lost_worker_restarts_all_and_is_not_counted(cluster: pl.Client, tmp_path: Path) -> None:
    whole = result(run(cluster, "ddp.py", "6"), tmp_path)
    job = run(cluster, "ddp.py", "6", "--pause", "0.5")
    wait_until(lambda: "Epoch 1 " in job.logs())
    script = psutil.Process(job.workers()[0]["pid"]).children()
    os.kill(job.workers()[1]["pid"], signal.SIGKILL)
    assert result(job, tmp_path) == {"loss": whole["loss"], "restarts": "0"}
    assert [event.data["rank"] for event in job.events_so_far() if event.kind == "worker_lost"] == [1]
    wait_until(lambda: all(ended(process.pid) for process in script))


@pytest.mark.slow
def test_the_rank_that_raised_is_named_with_its_own_traceback_after_the_last_restart(cluster: pl.Client) -> None:
    job = run(cluster, "faulty.py", max_restarts=1)
    with pytest.raises(pl.UserCodeError, match="KeyError: 'the script is at fault'") as raised:
        job.output("unused", timeout=120)
    assert (raised.value.details["rank"], raised.value.details["type"]) == (1, "KeyError")
    assert raised.value.traceback.splitlines()[-1] == "KeyError: 'the script is at fault'"
    assert job.info()["attempt"] == 2
    assert "[2.1] rank 1 restart 1" in whole_log(job)


@pytest.mark.slow
def test_a_cancelled_script_leaves_no_process(cluster: pl.Client) -> None:
    job = run(cluster, "ddp.py", "100000", "--pause", "0.1")
    wait_until(lambda: "Epoch 1 " in job.logs())
    pids = [worker["pid"] for worker in job.workers()]
    family = [child for pid in pids for child in psutil.Process(pid).children(recursive=True)]
    assert len(family) >= 2
    job.cancel()
    with pytest.raises(pl.JobCancelled):
        job.output("unused", timeout=60)
    wait_until(lambda: all(ended(child.pid) for child in family) and all(map(ended, pids)))


def names(folder: Path | None) -> list[str]:
    assert folder is not None
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_a_cancelled_script_is_asked_to_end_and_may_save_first_and_that_is_kept_of_every_rank(
    cluster: pl.Client, tmp_path: Path
) -> None:
    assert TERM_GRACE_S == 10.0
    job = run(cluster, "saves.py", workers=6)
    wait_until(lambda: all(f"rank {rank} can be asked" in job.logs() for rank in range(6)))
    job.cancel()
    with pytest.raises(pl.JobCancelled):
        job.output("unused", timeout=60)
    assert "rank 0 has saved" in whole_log(job)
    first, last = (names(job.output(tmp_path / f"{rank}", partial=True, rank=rank)) for rank in (0, 5))
    assert sorted(first + last) == [f"saved-{rank}" for rank in range(6)]
    assert "saved-0" in first
    assert "saved-5" in last
    with pytest.raises(pl.NotFound, match="had 6 rank"):
        job.output(tmp_path / "6", partial=True, rank=6)
    assert {line[:6] for line in job.logs(rank=5).splitlines()} == {"[1.5] "}


@pytest.mark.slow
def test_before_a_restart_and_after_the_last_one_the_other_ranks_may_save(cluster: pl.Client, tmp_path: Path) -> None:
    job = run(cluster, "saves.py", max_restarts=1, env={"FAILS": "1"})
    with pytest.raises(pl.UserCodeError, match="out of luck"):
        job.output("unused", timeout=120)
    log = whole_log(job)
    assert "[1.0] rank 0 has saved" in log
    assert "[2.0] rank 0 has saved" in log
    found = job.output(tmp_path / "out", partial=True)
    assert names(found) == ["saved-0"]
    assert (tmp_path / "out" / "saved-0").read_text() == "1"


@pytest.mark.slow
def test_a_script_that_hangs_shows_the_stacks_of_its_ranks_and_is_restarted(cluster: pl.Client, tmp_path: Path) -> None:
    job = run(cluster, "hangs.py", max_restarts=1, hang_timeout=10)
    assert result(job, tmp_path) == {"restarts": "1"}
    assert [event.data["ranks"] for event in job.events_so_far() if event.kind == "hung"] == [[0, 1]]
    log = whole_log(job)
    assert re.search(r"^\[1\.1\].*hangs\.py\", line \d+ in wait_for_what_never_comes$", log, re.MULTILINE)
    # rank 0 is aborted as well, unless the end of rank 1 makes it raise before that
    assert re.search(r"^\[1\.0\].*hangs\.py\", line \d+,? in main$", log, re.MULTILINE)


@pytest.mark.slow
def test_a_script_that_hangs_for_the_last_time_fails_with_the_stacks(cluster: pl.Client) -> None:
    job = run(cluster, "hangs.py", hang_timeout=10)
    with pytest.raises(pl.UserCodeError, match=r"the script hangs: for 10 s, rank 0 on .*, rank 1 on ") as raised:
        job.output("unused", timeout=120)
    of_rank_1 = raised.value.traceback.split("rank 1 on ")[1]
    assert "in wait_for_what_never_comes" in of_rank_1


@pytest.mark.slow
def test_a_script_that_is_slow_and_silent_is_never_taken_for_one_that_hangs(cluster: pl.Client) -> None:
    job = run(cluster, "slow.py", workers=1, hang_timeout=10)
    assert job.wait(120) == "SUCCEEDED"
    assert job.info()["attempt"] == 1


def scaled(x: torch.Tensor, by: float) -> dict[str, torch.Tensor]:
    """The sum over the ranks of what each of them makes."""
    torch.distributed.init_process_group("gloo")
    mine = x * by * (1 + int(os.environ["RANK"]))
    torch.distributed.all_reduce(mine)
    return {"sum": mine}


@pytest.mark.slow
def test_a_called_function_gives_back_tensors_and_json_of_each_rank(cluster: pl.Client) -> None:
    two = pl.ScriptSpec(workdir=None, resources=pl.Resources(workers=2))
    large = torch.arange(100_000.0)
    found = cluster.call(scaled, large, by=2.0, spec=two).returned(timeout=120)
    assert [sorted(rank) for rank in found] == [["sum"], ["sum"]]
    assert all(torch.equal(rank["sum"], large * 6) for rank in found)
    assert cluster.call(lambda: {"a": [1, None, "é"]}).returned(timeout=120) == [{"a": [1, None, "é"]}]
    with pytest.raises(pl.InvalidSpec, match="returned a set"):
        cluster.call(lambda: {1, 2}).returned(timeout=120)
