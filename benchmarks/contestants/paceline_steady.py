"""`python paceline_steady.py WORKLOAD`: the same training as a job of one worker.

Last line: `{samples_per_s, mean_loss}`; the rate by the master's clock, from the first commit after the warm-up to
the last, so that whatever happens between rounds counts; the mean over all steps' batches.
"""

import json
import sys

import steady

import paceline as pl

work = steady.WORKLOADS[sys.argv[1]]

if __name__ == "__main__":
    with pl.Client(local=True) as client:
        job = client.train(
            work.model(),
            work.data(),
            loss=steady.loss,
            optimizer=steady.optimizer,
            batch_size=work.batch,
            microbatches=steady.MICROBATCHES,
            drop_last=True,
            stop=pl.MaxSteps(work.steps),
            resources=pl.Resources(workers=1),
        )
        commits = [event.data for event in job.events() if event.kind == "progress"]
        history = job.result().history
    warm = next(commit for commit in commits if commit["step"] >= steady.WARM_UP_STEPS)
    rate = (work.steps - warm["step"]) * work.batch / (commits[-1]["at"] - warm["at"])
    ends = [0, *(epoch["samples"] for epoch in history)]
    sums = [(end - start) * epoch["loss"] for start, end, epoch in zip(ends, ends[1:], history, strict=False)]
    print(json.dumps({"samples_per_s": rate, "mean_loss": sum(sums) / ends[-1]}))
