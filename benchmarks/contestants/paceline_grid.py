"""`python paceline_grid.py TURN`: one worker's rate on each model of steady.py, by the number of microbatches.

Last line: `{workload: {"default": M, "runs": {M: {samples_per_s, loss}}}}`; default: what a spec gets that names none.
The rate by the master's clock, from the first commit after the warm-up to the last; the loss since the last evaluation.
TURN rotates the order, so that no number always runs first.
"""

import json
import sys
from typing import Any

import steady

import paceline as pl

MICROBATCHES = (1, 2, 4, 8, 16)
STEPS = {"cnn": 50, "transformer": 32, "mlp": 340}  # some two and a half seconds each
WARM_UP = 0.15  # of the steps


def fields_of(workload: str) -> dict[str, Any]:
    work = steady.WORKLOADS[workload]
    return {
        "train_data": work.data(),
        "loss": steady.loss,
        "optimizer": steady.optimizer,
        "batch_size": work.batch,
        "drop_last": True,
        "stop": pl.MaxSteps(STEPS[workload]),
        "resources": pl.Resources(workers=1),
    }


def measure(client: pl.Client, workload: str, fields: dict[str, Any], microbatches: int) -> dict[str, float]:
    job = client.train(steady.WORKLOADS[workload].model(), microbatches=microbatches, **fields)
    commits = [(event.data["step"], event.data["at"]) for event in job.events() if event.kind == "progress"]
    commits = [commit for commit in commits if commit[0] >= WARM_UP * STEPS[workload]]
    (first, started), (last, ended) = commits[0], commits[-1]
    rate = (last - first) * fields["batch_size"] / (ended - started)
    return {"samples_per_s": rate, "loss": job.result().history[-1]["loss"]}


def main(turn: int) -> dict[str, Any]:
    order = MICROBATCHES[turn % len(MICROBATCHES) :] + MICROBATCHES[: turn % len(MICROBATCHES)]
    found: dict[str, Any] = {}
    with pl.Client(local=True, cores=2) as client:
        for workload in STEPS:
            fields = fields_of(workload)
            default = client.plan(steady.WORKLOADS[workload].model(), **fields).microbatches
            measure(client, workload, fields, 1)  # brings the data to the node
            runs = {number: measure(client, workload, fields, number) for number in order}
            found[workload] = {"default": default, "runs": runs}
    return found


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
