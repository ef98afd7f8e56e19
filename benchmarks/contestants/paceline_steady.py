"""`python paceline_steady.py WORKLOAD`: the same training as a job of one worker.

Last line: `{samples_per_s, loss}`; the rate by the master's clock, from the first commit after the warm-up to the
last, so that whatever happens between rounds counts; the loss of the last step's batch.
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
        job.result()
    first = next(commit for commit in commits if commit["step"] >= steady.WARM_UP_STEPS)
    last = commits[-1]
    samples = (last["step"] - first["step"]) * work.batch
    print(json.dumps({"samples_per_s": samples / (last["at"] - first["at"]), "loss": last["loss"]}))
