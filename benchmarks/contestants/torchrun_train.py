"""`torchrun --nproc-per-node=N torchrun_train.py SEED MODEL_FILE`: the ordinary script of a torch user."""

import sys

import ten_steps
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
net = ten_steps.model()
wrapped = torch.nn.parallel.DistributedDataParallel(net)
ten_steps.train(wrapped, int(sys.argv[1]), dist.get_rank(), dist.get_world_size())
if dist.get_rank() == 0:
    torch.save(net.state_dict(), sys.argv[2])
dist.destroy_process_group()
