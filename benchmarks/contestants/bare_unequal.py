"""`python bare_unequal.py`: what each quota is worth: a bare loop under each, all at once, which exchange nothing.

Last line: `{rates, losses}`: samples/s under each quota, of whole steps; the first loop's loss at each step.
"""

import json
import subprocess
import sys
import time

import torch
import unequal

from paceline.grid import Grid

WARM_UP_S, MEASURED_S = 5.0, 20.0


class Loop:
    """The loop that a torch user writes, with gradient accumulation over the grid's microbatches."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._x, self._y = unequal.data()
        self._model = unequal.model()
        self._optimizer = unequal.optimizer(self._model.parameters())
        self._grid = Grid(len(self._x), unequal.BATCH, unequal.MICROBATCHES, drop_last=True, seed=0)
        self.losses: list[float] = []

    def step(self) -> None:
        total = 0.0
        for cell in range(unequal.MICROBATCHES):
            index = torch.from_numpy(self._grid.cell_samples(len(self.losses), cell))
            loss = unequal.loss(self._model(self._x[index]), self._y[index]) / unequal.MICROBATCHES
            loss.backward()
            total += loss.item()
        self.losses.append(total)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def rate(self, seconds: float) -> float:
        """Samples/s over as many whole steps as it takes to fill the time."""
        started, before = time.perf_counter(), len(self.losses)
        while time.perf_counter() - started < seconds:
            self.step()
        return (len(self.losses) - before) * unequal.BATCH / (time.perf_counter() - started)


def worker(entry: str) -> None:
    loop = Loop()
    unequal.enter(entry)
    print("ready", flush=True)
    sys.stdin.readline()
    loop.rate(WARM_UP_S)
    print(json.dumps({"rate": loop.rate(MEASURED_S), "losses": loop.losses}), flush=True)


def main() -> None:
    with unequal.groups() as groups:
        workers = [
            subprocess.Popen(
                [sys.executable, __file__, group.entries[0]], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for group in groups
        ]
        for process in workers:
            assert process.stdout.readline() == "ready\n"
        for process in workers:
            process.stdin.write("go\n")
            process.stdin.flush()
        found = [json.loads(process.stdout.readline()) for process in workers]
    print(json.dumps({"rates": [one["rate"] for one in found], "losses": found[0]["losses"]}))


if __name__ == "__main__":
    worker(sys.argv[1]) if len(sys.argv) > 1 else main()
