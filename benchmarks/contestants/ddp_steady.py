"""`torchrun … ddp_steady.py WORKLOAD`: ordinary DDP, each rank taking its part of the grid's batch in one pass.

Rank 0's last line: `{samples_per_s, mean_loss, bytes_per_step}`; rate and bytes without the warm-up.
"""

import json
import os
import time

import steady
import torch
import torch.distributed as dist
from traffic import loopback_bytes

from paceline.grid import Grid


def main(workload: str) -> None:
    work = steady.WORKLOADS[workload]
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    x, y = work.data()
    model = torch.nn.parallel.DistributedDataParallel(work.model())
    optimizer = steady.optimizer(model.parameters())
    grid = Grid(len(x), work.batch, world, drop_last=True, seed=0)
    started, before, losses = time.perf_counter(), 0, []
    for step in range(work.steps):
        if step == steady.WARM_UP_STEPS:
            started, before = time.perf_counter(), loopback_bytes()
        index = torch.from_numpy(grid.cell_samples(step, rank))
        loss = steady.loss(model(x[index]), y[index])
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    seconds, sent = time.perf_counter() - started, loopback_bytes() - before
    mean = torch.tensor([sum(losses) / len(losses)])
    dist.all_reduce(mean)
    dist.destroy_process_group()
    if rank == 0:
        steps = work.steps - steady.WARM_UP_STEPS
        found = {"samples_per_s": steps * work.batch / seconds, "mean_loss": mean.item() / world}
        print(json.dumps({**found, "bytes_per_step": sent / steps}))


if __name__ == "__main__":
    import sys

    main(sys.argv[1])
