"""`python ray_steady.py WORKLOAD STEPS WORKERS`: the same loop in a TorchTrainer, whose model is DDP's too.

The last line is what data_parallel.py measures.
"""

import json
import os
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # otherwise Ray writes one to the home folder
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import data_parallel
import ray
import ray.train
import steady
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model


def work(config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    workload = steady.WORKLOADS[config["workload"]]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    found = data_parallel.train(workload, prepare_model(workload.model()), rank, world, config["steps"])
    if rank == 0:
        Path(config["written"]).write_text(json.dumps(found))


if __name__ == "__main__":
    workload, steps, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with tempfile.TemporaryDirectory() as folder:
        ray.init(
            num_cpus=max(2, workers + 1), include_dashboard=False, log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )  # fmt: skip
        try:
            written = Path(folder) / "found.json"
            TorchTrainer(
                work,
                train_loop_config={"workload": workload, "steps": steps, "written": str(written)},
                scaling_config=ScalingConfig(num_workers=workers, use_gpu=False),
                run_config=RunConfig(storage_path=folder),
            ).fit()
            print(written.read_text())
        finally:
            ray.shutdown()
