"""A model of three times one node's memory trains on four nodes, and no process ever holds the whole."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

import paceline as pl
from paceline.planner.sharded import COPIES
from paceline.testing.emulated import EmulatedCluster
from paceline.testing.hosts import HostSpec
from paceline.testing.system import EmulationUnavailable

NODE_BYTES = 4 * 2**30
TIMES = 3
WIDTH, VOCABULARY = 1024, 256
LAYER_BYTES = 4 * (4 * WIDTH * WIDTH + 8 * WIDTH * WIDTH)
LAYERS = TIMES * NODE_BYTES // COPIES // LAYER_BYTES + 1
PREDICTED_WITHIN = 0.15

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Transformer(nn.Module):
    """Layers of 48 MiB each; a builder's, and so made without memory."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(VOCABULARY, WIDTH)
        layers = [nn.TransformerEncoderLayer(WIDTH, 8, 4 * WIDTH, dropout=0.0, batch_first=True) for _ in range(LAYERS)]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        x = self.letters(letters)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, -1])


def letters() -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    texts = torch.randint(0, VOCABULARY, (16, 9), generator=made)
    return texts[:, :-1].contiguous(), texts[:, -1].contiguous()


def spec(*nodes: str) -> pl.TrainSpec:
    return pl.TrainSpec(
        model=Transformer,
        train_data=letters(),
        loss=nn.functional.cross_entropy,
        optimizer=partial(torch.optim.AdamW, lr=1e-4),
        batch_size=8,
        stop=pl.MaxSteps(2),
        sync="sharded",
        resources=pl.Resources(nodes=nodes),
    )


def anonymous_bytes(pid: int) -> int:
    """What a process holds that lies in no file; the files of torch and of the data are shared and reclaimed."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


@contextmanager
def peaks() -> Iterator[dict[int, int]]:
    """Process id -> the most that it held, of this process and all below it."""
    found: dict[int, int] = defaultdict(int)
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    found[process.pid] = max(found[process.pid], anonymous_bytes(process.pid))
                except (FileNotFoundError, ProcessLookupError, IndexError):
                    continue

    watching = threading.Thread(target=look)
    watching.start()
    try:
        yield found
    finally:
        over.set()
        watching.join()


def test_a_transformer_of_three_times_a_nodes_memory_trains_on_four_nodes() -> None:
    names = ["a", "b", "c", "d"]
    state_bytes = COPIES * sum(p.nbytes for p in meta().parameters())
    assert state_bytes >= TIMES * NODE_BYTES
    try:
        with EmulatedCluster([HostSpec(name, memory=NODE_BYTES) for name in names]) as cluster:
            if any(node.memory > NODE_BYTES for node in cluster.client.nodes() if node.name in names):
                pytest.skip("the agents report this machine's memory, not their cgroup's limit")
            with pytest.raises(pl.Unplaceable, match="of parameters, gradients and optimizer") as refused:
                cluster.client.submit(spec("a"))
            assert "would hold it" in refused.value.remedy
            with peaks() as held:
                plan, workers, result = train(cluster.client, spec(*names))
            model_bytes = sum(tensor.nbytes for tensor in result.state_dict.values())
    except EmulationUnavailable as why:
        pytest.skip(str(why))
    assert {worker.node_name for worker in plan.workers} == set(names)
    assert model_bytes * COPIES == state_bytes
    print({"state": state_bytes, "predicted": plan.memory_per_worker, "workers": [held[pid] for pid in workers]})
    print({"others, the largest": sorted((most for pid, most in held.items() if pid not in workers), reverse=True)[:6]})
    own = plan.memory_per_worker - plan.sharding.copy_bytes  # copies lie in files
    for pid in workers:
        assert held[pid] == pytest.approx(own, rel=PREDICTED_WITHIN)
    others = [most for pid, most in held.items() if pid not in workers]
    assert max(others) < state_bytes // COPIES // 2  # this process, the master and the agents hold no model


def train(client: pl.Client, wanted: pl.TrainSpec) -> tuple[pl.Plan, set[int], pl.Result]:
    """(the plan, the process ids of all its workers, what came of it)."""
    job = client.submit(wanted)
    plan, workers = job.plan, set[int]()
    while job.state not in ("SUCCEEDED", "FAILED"):
        workers |= {worker["pid"] for worker in job.workers() if worker["pid"]}
        time.sleep(0.5)
    return plan, workers, job.result()


def meta() -> nn.Module:
    with torch.device("meta"):
        return Transformer()
