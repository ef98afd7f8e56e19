"""`torchrun … fsdp_sharded.py STEPS`: FSDP2 as in its tutorial. Rank 0's last line: `{samples_per_s, mean_loss}`."""

import json
import os
import sys
import time

import sharding
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from paceline.grid import Grid

if __name__ == "__main__":
    steps = int(sys.argv[1])
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    model = sharding.model()
    for layer in model.encoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = sharding.optimizer(model.parameters())
    x, y = sharding.data()
    grid = Grid(len(x), sharding.BATCH, world, drop_last=True, seed=0)
    started, losses = time.perf_counter(), []
    for step in range(steps):
        if step == sharding.WARM_UP_STEPS:
            started = time.perf_counter()
        index = torch.from_numpy(grid.cell_samples(step, rank))
        loss = sharding.loss(model(x[index]), y[index])
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - started
    total = torch.tensor([sum(losses) / steps / world])
    dist.all_reduce(total)
    dist.destroy_process_group()
    if rank == 0:
        measured = (steps - sharding.WARM_UP_STEPS) * sharding.BATCH
        print(json.dumps({"samples_per_s": measured / seconds, "mean_loss": total.item()}))
