"""`python ray_train.py WORKERS…`: for each entry one TorchTrainer.fit() on the same Ray; the last line has each one's
`{workers, seconds, loss}`. The first entry's time includes what only a first fit() costs.
"""

import json
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # otherwise Ray writes one to the home folder

import ray
import ray.train
import ten_steps
import torch
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model

MODEL = "model.pt"


def work(config: dict[str, Any]) -> None:
    net = ten_steps.model()
    wrapped = prepare_model(net)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    ten_steps.train(wrapped, config["seed"], rank, world)
    with tempfile.TemporaryDirectory() as folder:
        if rank == 0:
            torch.save(net.state_dict(), Path(folder) / MODEL)
        ray.train.report({}, checkpoint=Checkpoint.from_directory(folder) if rank == 0 else None)


def fit(workers: int, seed: int, storage: str) -> dict[str, float]:
    started = time.perf_counter()
    trainer = TorchTrainer(
        work,
        train_loop_config={"seed": seed},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=False),
        run_config=RunConfig(storage_path=storage),
    )
    checkpoint = trainer.fit().checkpoint
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / MODEL)
    return {"workers": workers, "seconds": time.perf_counter() - started, "loss": ten_steps.loss_of(state, seed)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as storage:
        ray.init(
            num_cpus=max(2, os.cpu_count() or 2), include_dashboard=False, log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )  # fmt: skip
        try:
            print(json.dumps({"fits": [fit(int(workers), int(workers), storage) for workers in sys.argv[1:]]}))
        finally:
            ray.shutdown()
