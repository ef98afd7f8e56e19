"""`python ddp_unequal.py`: ordinary DDP under torchrun, each rank under its quota and with an equal part of the batch.

Last line: `{samples_per_s, losses}`; the rate without the warm-up.
"""

import json
import os
import subprocess
import sys
import time

import torch
import torch.distributed as dist
import unequal

from paceline.grid import Grid


def rank(entries: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    x, y = unequal.data()
    me, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    unequal.enter(entries[me])
    dist.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(unequal.model())
    optimizer = unequal.optimizer(model.parameters())
    grid = Grid(len(x), unequal.BATCH, world, drop_last=True, seed=0)
    losses = torch.zeros(unequal.STEPS)
    started = time.perf_counter()
    for step in range(unequal.STEPS):
        if step == unequal.WARM_UP_STEPS:
            started = time.perf_counter()
        index = torch.from_numpy(grid.cell_samples(step, me))
        loss = unequal.loss(model(x[index]), y[index])
        loss.backward()
        losses[step] = loss.item() / world
        optimizer.step()
        optimizer.zero_grad()
    rate = (unequal.STEPS - unequal.WARM_UP_STEPS) * unequal.BATCH / (time.perf_counter() - started)
    dist.all_reduce(losses)
    dist.destroy_process_group()
    if me == 0:
        print(json.dumps({"samples_per_s": rate, "losses": losses.tolist()}))


def main() -> None:
    with unequal.groups() as groups:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={len(groups)}", __file__]
        subprocess.run([sys.executable, *launch, *(group.entries[0] for group in groups)], check=True)


if __name__ == "__main__":
    rank(sys.argv[1:]) if "RANK" in os.environ else main()
