"""`python paceline_steady.py WORKLOAD [WORKERS]`: the same training as a job.

Last line: `{samples_per_s, mean_loss, last_loss, bytes_per_step}`; the rate by the master's clock, from the first
commit after the warm-up to the last, so that whatever happens between rounds counts, as does the master's own
traffic; the mean over all steps' batches.
"""

import json
import sys
from itertools import pairwise

import steady
from traffic import loopback_bytes

import paceline as pl

work = steady.WORKLOADS[sys.argv[1]]
workers = int(sys.argv[2]) if len(sys.argv) > 2 else 1

if __name__ == "__main__":
    with pl.Client(local=True, cores=max(2, workers + workers // 4)) as client:
        job = client.train(
            work.model(),
            work.data(),
            loss=steady.loss,
            optimizer=steady.optimizer,
            batch_size=work.batch,
            microbatches=steady.MICROBATCHES,
            drop_last=True,
            stop=pl.MaxSteps(work.steps),
            resources=pl.Resources(workers=workers),
        )
        commits = []
        for event in job.events():
            if event.kind == "progress" and event.data["step"] >= steady.WARM_UP_STEPS:
                commits.append((event.data["step"], event.data["at"], loopback_bytes()))
                last_loss = event.data["loss"]
        history = job.result().history
    (first, started, bytes_before), (last, ended, bytes_after) = commits[0], commits[-1]
    rate = (last - first) * work.batch / (ended - started)
    ends = [0, *(epoch["samples"] for epoch in history)]
    sums = [(end - start) * epoch["loss"] for (start, end), epoch in zip(pairwise(ends), history, strict=True)]
    traffic = (bytes_after - bytes_before) / (last - first)
    losses = {"mean_loss": sum(sums) / ends[-1], "last_loss": last_loss}
    print(json.dumps({"samples_per_s": rate, **losses, "bytes_per_step": traffic}))
