"""torchft as in its own train_ddp.py: a replica group of one worker for each of the two.

`python torchft_faulty.py FOLDER EVERY` starts the lighthouse and a `torchrun` for each group, which runs this file
again with REPLICA_GROUP_ID set. A worker that is alone goes on with its own half of each batch.

Gradients go through `Manager.allreduce`, not through the `DistributedDataParallel` of train_ddp.py: that of 0.2.0 ends
the survivor too (`assert fut._fut` in its hook) when an all-reduce of gloo fails.
"""

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import faulty
import steady
import torch
from torch.nn.utils import parameters_to_vector
from torchft import Manager, Optimizer, ProcessGroupGloo
from torchft.coordination import LighthouseServer

RESTARTS = 1000
# its README's; a lost group is noticed after five of its default second, as in its own tests
LIGHTHOUSE = {"min_replicas": 1, "quorum_tick_ms": 100, "join_timeout_ms": 10_000, "heartbeat_timeout_ms": 1000}


def launch(folder: str, every: str) -> None:
    lighthouse = LighthouseServer(bind="127.0.0.1:0", **LIGHTHOUSE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    groups = [
        subprocess.Popen(
            [*torchrun, f"--max-restarts={RESTARTS}", __file__, folder, every],
            env={**os.environ, "TORCHFT_LIGHTHOUSE": lighthouse.address(), "REPLICA_GROUP_ID": str(group)},
        )
        for group in range(faulty.WORKERS)
    ]
    for group in groups:
        group.wait()
    raise SystemExit("both groups ended")


def average(gradients: list[torch.Tensor], manager: Manager) -> None:
    """Over all groups; where one is lost, the values are worthless and the step will not be committed."""
    flat = parameters_to_vector(gradients)
    manager.allreduce(flat).wait()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def train(folder: Path, every: int, group: int) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    log = faulty.StepLog(folder)
    while len(list(folder.glob("*.steps"))) < faulty.WORKERS:
        time.sleep(0.01)  # the first to come would train alone, and begin with another model than everybody else's
    x, y = faulty.work.data()
    grid, path = faulty.grid_of(x), folder / "snapshot.pt"
    net = faulty.work.model()
    inner = steady.optimizer(net.parameters())

    def load(state: dict) -> None:
        net.load_state_dict(state["model"])
        inner.load_state_dict(state["optimizer"])

    def state() -> dict:
        return {"model": net.state_dict(), "optimizer": inner.state_dict()}

    manager = Manager(
        pg=ProcessGroupGloo(timeout=timedelta(seconds=5)),
        min_replica_size=1,
        load_state_dict=load,
        state_dict=state,
        replica_id=f"group_{group}",
        timeout=timedelta(seconds=30),
    )
    if path.exists():
        snapshot = torch.load(path)
        load(snapshot)
        manager.load_state_dict(snapshot["manager"])
    optimizer = Optimizer(manager, inner)
    while True:
        log.begin()
        index = torch.from_numpy(grid.cell_samples(manager.current_step(), group))
        optimizer.zero_grad()
        loss = faulty.loss(net(x[index]), y[index])
        loss.backward()
        average([p.grad for p in net.parameters()], manager)
        before = manager.batches_committed()
        optimizer.step()
        if manager.batches_committed() == before:
            continue  # a group was lost: the step was not committed
        done = manager.current_step()
        log.end(done, manager.batches_committed() * grid.cell_size, loss.item())
        if group == 0 and done % every == 0:
            faulty.save(path, **state(), manager=manager.state_dict())


if __name__ == "__main__":
    if "REPLICA_GROUP_ID" in os.environ:
        train(Path(sys.argv[1]), int(sys.argv[2]), int(os.environ["REPLICA_GROUP_ID"]))
    else:
        launch(*sys.argv[1:])
