"""`python paceline_unequal.py`: the same training as a job on four nodes, each with all its processes under a quota.

Last line: `{samples_per_s, mean_loss, shares}`; the rate by the master's clock, from the first commit after the
warm-up to the last; the microbatches of each worker at the end.
"""

import json
import tempfile
import time
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import unequal

import paceline as pl
from paceline.client.embedded import EmbeddedMaster, start_master
from paceline.engine.local import end_agent, spawn_agent
from paceline.engine.protocol import AgentArgs
from paceline.settings import MasterSettings

NODES = tuple(f"node-{number}" for number in range(len(unequal.QUOTAS)))
NODES_WITHIN_S = 60.0


@contextmanager
def cluster(groups):
    """A client of a master with a node in each group; its own node has one core and gets no work."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        process, ready = start_master(
            MasterSettings(folder=folder / "master", port=0, cores=1, parent_pipe=True, log_level="warning")
        )
        stack.callback(EmbeddedMaster(process, ready["url"], ready["token"], None).close)
        for name, group in zip(NODES, groups, strict=True):
            args = AgentArgs(
                master_url=ready["url"], token=ready["node_token"], folder=folder / name, name=name, cores=1,
                log_level="warning",
            )  # fmt: skip
            stack.callback(end_agent, spawn_agent(args, group.within))
        client = stack.enter_context(pl.Client(ready["url"], ready["token"]))
        deadline = time.monotonic() + NODES_WITHIN_S
        while not set(NODES) <= {node.name for node in client.nodes()}:
            if time.monotonic() > deadline:
                raise SystemExit(f"not all nodes joined in {NODES_WITHIN_S:.0f} s: {client.nodes()}")
            time.sleep(0.05)
        yield client


def train(client, steps):
    return client.train(
        unequal.model(),
        unequal.data(),
        loss=unequal.loss,
        optimizer=unequal.optimizer,
        batch_size=unequal.BATCH,
        microbatches=unequal.MICROBATCHES,
        drop_last=True,
        stop=pl.MaxSteps(steps),
        resources=pl.Resources(workers=len(NODES), nodes=NODES),
    )


def measure(job):
    commits = []
    for event in job.events():
        if event.kind == "progress" and event.data["step"] >= unequal.WARM_UP_STEPS:
            commits.append((event.data["step"], event.data["at"]))
    result = job.result()
    (first, started), (last, ended) = commits[0], commits[-1]
    ends = [0, *(epoch["samples"] for epoch in result.history)]
    sums = [(end - start) * epoch["loss"] for (start, end), epoch in zip(pairwise(ends), result.history, strict=True)]
    return {
        "samples_per_s": (last - first) * unequal.BATCH / (ended - started),
        "mean_loss": sum(sums) / ends[-1],
        "shares": [worker.share[1] - worker.share[0] for worker in result.plan.workers],
    }


if __name__ == "__main__":
    with unequal.groups([None] * len(NODES)) as groups, cluster(groups) as client:
        train(client, steps=1).result()  # every node has what it imports, as DDP's ranks do before their quota begins
        for group, quota in zip(groups, unequal.QUOTAS, strict=True):
            group.set_cores(quota)
        print(json.dumps(measure(train(client, unequal.STEPS))))
