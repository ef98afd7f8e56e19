"""`python bare_loop.py WORKLOAD`: the loop that a torch user writes, over the grid's own microbatches.

Last line: `{samples_per_s, mean_loss, last_loss}`: the rate without the warm-up; the mean over all steps' batches.
"""

import json
import sys
import time

import steady
import torch

from paceline.grid import Grid

work = steady.WORKLOADS[sys.argv[1]]
torch.set_num_threads(1)
x, y = work.data()
model = work.model()
optimizer = steady.optimizer(model.parameters())
grid = Grid(len(x), work.batch, steady.MICROBATCHES, drop_last=True, seed=0)

started, losses = time.perf_counter(), []
for step in range(work.steps):
    if step == steady.WARM_UP_STEPS:
        started = time.perf_counter()
    total = 0.0
    for cell in range(steady.MICROBATCHES):
        index = torch.from_numpy(grid.cell_samples(step, cell))
        loss = steady.loss(model(x[index]), y[index]) / steady.MICROBATCHES
        loss.backward()
        total += loss.item()
    losses.append(total)
    optimizer.step()
    optimizer.zero_grad()
rate = (work.steps - steady.WARM_UP_STEPS) * work.batch / (time.perf_counter() - started)
print(json.dumps({"samples_per_s": rate, "mean_loss": sum(losses) / len(losses), "last_loss": losses[-1]}))
