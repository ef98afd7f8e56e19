"""`python paceline_sharded.py STEPS WORKERS`: the same as a sharded job. Last line: `{samples_per_s, mean_loss}`.

The rate is by the master's clock, from the first commit after the warm-up to the last, with all between rounds.
"""

import json
import sys
from itertools import pairwise

import sharding

import paceline as pl


def measure(steps, workers):
    with pl.Client(local=True, cores=workers + 1) as client:
        job = client.train(
            sharding.model(),
            sharding.data(),
            loss=sharding.loss,
            optimizer=sharding.optimizer,
            batch_size=sharding.BATCH,
            microbatches=workers,
            clip_grad_norm=1.0,
            drop_last=True,
            sync="sharded",
            stop=pl.MaxSteps(steps),
            resources=pl.Resources(workers=workers),
        )
        progress = [event.data for event in job.events() if event.kind == "progress"]
        commits = [(data["step"], data["at"]) for data in progress if data["step"] >= sharding.WARM_UP_STEPS]
        result = job.result()
    (first, started), (last, ended) = commits[0], commits[-1]
    ends = [0, *(entry["samples"] for entry in result.history)]
    sums = [(end - start) * entry["loss"] for (start, end), entry in zip(pairwise(ends), result.history, strict=True)]
    return {
        "samples_per_s": (last - first) * sharding.BATCH / (ended - started),
        "mean_loss": sum(sums) / ends[-1],
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))))
