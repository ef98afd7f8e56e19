"""`torchrun --max-restarts … torchrun_faulty.py FOLDER EVERY`: DDP with a snapshot every so many steps.

As in PyTorch's tutorial on fault-tolerant training: rank 0 writes it, every rank begins with it where there is one.
The tutorial's holds model and epoch; this one the optimizer's state too, without which the training would be another.
"""

import os
import sys
from pathlib import Path

import faulty
import steady
import torch
import torch.distributed as dist


def main(folder: Path, every: int) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo")
    rank, done, path = dist.get_rank(), 0, folder / "snapshot.pt"
    net = faulty.work.model()
    optimizer = steady.optimizer(net.parameters())
    if path.exists():
        snapshot = torch.load(path)
        net.load_state_dict(snapshot["model"])
        optimizer.load_state_dict(snapshot["optimizer"])
        done = snapshot["done"]

    def after_step(done: int) -> None:
        if rank == 0 and done % every == 0:
            faulty.save(path, model=net.state_dict(), optimizer=optimizer.state_dict(), done=done)

    faulty.train(torch.nn.parallel.DistributedDataParallel(net), optimizer, rank, done, folder, after_step)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
