"""`torchrun … ddp_steady.py WORKLOAD STEPS`: ordinary DDP. Rank 0's last line is what data_parallel.py measures."""

import json
import os
import sys

import data_parallel
import steady
import torch
import torch.distributed as dist

if __name__ == "__main__":
    work, steps = steady.WORKLOADS[sys.argv[1]], int(sys.argv[2])
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    model = torch.nn.parallel.DistributedDataParallel(work.model())
    found = data_parallel.train(work, model, rank, world, steps)
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(found))
