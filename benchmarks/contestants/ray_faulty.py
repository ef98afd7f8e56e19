"""`python ray_faulty.py FOLDER EVERY`: a TorchTrainer that reports a checkpoint every so many steps, and goes on."""

import os
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # otherwise Ray writes one to the home folder

import faulty
import ray
import ray.train
import steady
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model

STATE = "state.pt"


def work(config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    rank, done = ray.train.get_context().get_world_rank(), 0
    net = faulty.work.model()
    optimizer = steady.optimizer(net.parameters())
    last = ray.train.get_checkpoint()
    if last is not None:
        with last.as_directory() as folder:
            state = torch.load(Path(folder) / STATE)
        net.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["done"]

    def after_step(done: int) -> None:
        if done % config["every"] != 0:
            return
        with tempfile.TemporaryDirectory() as folder:
            if rank == 0:
                state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "done": done}
                torch.save(state, Path(folder) / STATE)
            ray.train.report({}, checkpoint=Checkpoint.from_directory(folder) if rank == 0 else None)

    faulty.train(prepare_model(net), optimizer, rank, done, Path(config["folder"]), after_step)


if __name__ == "__main__":
    folder, every = sys.argv[1], int(sys.argv[2])
    ray.init(
        num_cpus=max(2, os.cpu_count() or 2), include_dashboard=False, log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )  # fmt: skip
    TorchTrainer(
        work,
        train_loop_config={"folder": folder, "every": every},
        scaling_config=ScalingConfig(num_workers=faulty.WORKERS, use_gpu=False),
        run_config=RunConfig(
            storage_path=f"{folder}/storage",
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    ).fit()
