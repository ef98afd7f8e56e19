"""Handwritten digits: the smallest whole job. Arrays in, a trained model out.

Data: scikit-learn's 1,797 digits of 8 x 8 pixels; a fifth of them is held out for validation.
Expected: at least 97% validation accuracy, in less than 10 seconds on two cores.

    python examples/digits.py               # an embedded master on this machine, or the one at PACELINE_URL
    paceline train examples/digits.py       # the master of `paceline login`
"""

import os
import sys
from functools import partial

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import paceline as pl

EXPECTED_ACCURACY = 0.97


def load():
    """((X, y) for training, (X, y) for validation): pixels in 0..1, shape (n, 64), and the digits."""
    X, y = load_digits(return_X_y=True)
    X_train, X_val, y_train, y_val = train_test_split(X / 16, y, test_size=0.2, random_state=0, stratify=y)
    return (X_train, y_train), (X_val, y_val)


def build_model():
    """A small CNN: two convolutions, dropout, and a linear head."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(512, 10),
    )


def accuracy(outputs, targets):
    return (outputs.argmax(1) == targets).float().mean()


train_data, val_data = load()
spec = pl.TrainSpec(
    name="digits",
    model=build_model,
    train_data=train_data,
    val_data=val_data,
    loss=nn.functional.cross_entropy,
    optimizer=partial(torch.optim.AdamW, lr=3e-3),
    batch_size=64,
    metrics={"accuracy": accuracy},
    stop=pl.MaxEpochs(20) | pl.Metric("val_accuracy", at_least=0.98),
    keep="best:val_accuracy",
    seed=0,
)

if __name__ == "__main__":
    with pl.Client(local="PACELINE_URL" not in os.environ) as client:
        job = client.submit(spec)
        job.watch()
        result = job.result()
        print(job.plan.explain())
    best = max(values["val_accuracy"] for values in result.history)
    print(f"stopped by {result.stop_reason}; model {result.digest}, reproducible: {result.reproducible}")
    print(f"validation accuracy {best:.2%}, expected at least {EXPECTED_ACCURACY:.0%}")
    sys.exit(best < EXPECTED_ACCURACY)
