"""`python paceline_steady.py WORKLOAD [--workers N] [--microbatches N] [--steps N] [--checkpoint-every N] [--unequal]`:
the same as a job.

Last line: `{samples_per_s, mean_loss, last_loss, bytes_per_step, shares, checkpoints}`; the rate by the master's clock,
from the first commit after the warm-up to the last, so that whatever happens between rounds counts, as does the
master's own traffic; the mean over all steps' batches; the microbatches of each worker at the end; the checkpoints that
were stored while the clock ran.
"""

import argparse
import json
import os
import tempfile
import time
from itertools import pairwise

import steady
from traffic import loopback_bytes

import paceline as pl

QUICK_S, SLOW_S = 0.02, 0.09  # a microbatch's own computing is short beside both, and the same for all


class Unequal:
    """The loss of a worker that is some four times as fast as all the others, whichever is there first."""

    def __init__(self, folder):
        self.folder, self.pause_s = folder, None

    def __call__(self, output, target):
        if self.pause_s is None:
            try:
                os.mkdir(f"{self.folder}/taken")
                self.pause_s = QUICK_S
            except FileExistsError:
                self.pause_s = SLOW_S
        time.sleep(self.pause_s)
        return steady.loss(output, target)


def measure(options, folder):
    work = steady.WORKLOADS[options.workload]
    steps = options.steps or work.steps
    with pl.Client(local=True, cores=max(2, options.workers + options.workers // 4)) as client:
        job = client.train(
            work.model(),
            work.data(),
            loss=Unequal(folder) if options.unequal else steady.loss,
            optimizer=steady.optimizer,
            batch_size=work.batch,
            microbatches=options.microbatches,
            drop_last=True,
            checkpoint_every=options.checkpoint_every,
            stop=pl.MaxSteps(steps),
            resources=pl.Resources(workers=options.workers),
        )
        commits, checkpoints = [], 0
        for event in job.events():
            checkpoints += event.kind == "checkpoint" and bool(commits)
            if event.kind == "progress" and event.data["step"] >= steady.WARM_UP_STEPS:
                commits.append((event.data["step"], event.data["at"], loopback_bytes()))
                last_loss = event.data["loss"]
        result = job.result()
    (first, started, bytes_before), (last, ended, bytes_after) = commits[0], commits[-1]
    ends = [0, *(epoch["samples"] for epoch in result.history)]
    sums = [(end - start) * epoch["loss"] for (start, end), epoch in zip(pairwise(ends), result.history, strict=True)]
    return {
        "samples_per_s": (last - first) * work.batch / (ended - started),
        "mean_loss": sum(sums) / ends[-1],
        "last_loss": last_loss,
        "bytes_per_step": (bytes_after - bytes_before) / (last - first),
        "shares": [worker.share[1] - worker.share[0] for worker in result.plan.workers],
        "checkpoints": checkpoints,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=steady.WORKLOADS)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--microbatches", type=int, default=steady.MICROBATCHES)
    parser.add_argument("--steps", type=int, help="with the warm-up; the workload's own by default")
    parser.add_argument("--checkpoint-every", type=int, help="in steps; by default every 30 s")
    parser.add_argument("--unequal", action="store_true", help="one worker is quick")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(parser.parse_args(), folder)))
