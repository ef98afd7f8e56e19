"""Plain data that the unit tests need, with only what matters to each of them spelled out."""

from __future__ import annotations

from typing import Any

from paceline.measured import CellTime, Profile
from paceline.plan import Node, Placement, Plan
from paceline.spec import Facts, PackageRef, Submission, TrainOptions, Versions
from paceline.stop import MaxSteps

GIB = 2**30


def options(**changes: Any) -> TrainOptions:
    return TrainOptions(**{"stop": MaxSteps(10), **changes})


def submission(
    request_id: str = "request", val: bool = True, values: tuple[str, ...] = (), **changes: Any
) -> Submission:
    """A job with validation data, which evaluates the loss and `values`."""
    evaluated = ("loss", "val_loss", *values) if val else ("loss",)
    return Submission(
        request_id=request_id,
        versions=Versions(paceline="1", python="3.11", torch="2.13.0"),
        options=options(**changes),
        facts=Facts(
            parameters=10, parameter_bytes=40, train_samples=20, val_samples=8 if val else None, values=evaluated
        ),
        program=PackageRef(pickle="a" * 64),
        train_data=PackageRef(pickle="b" * 64, buffers=("c" * 64,)),
        val_data=PackageRef(pickle="d" * 64) if val else None,
    )


def node(name: str, **changes: Any) -> Node:
    """An idle node of 4 cores and 8 GiB."""
    fields: dict[str, Any] = {"cores": 4, "memory": 8 * GIB, "hardware_class": "cpu:AVX2", **changes}
    fields = {"free_cores": fields["cores"], "free_memory": fields["memory"], **fields}
    return Node(id=name, name=name, address="127.0.0.1", **fields)


def plan_of(shares: list[tuple[int, int]], most_workers: int = 1) -> Plan:
    """A plan with one worker a node, which take these shares of the grid."""
    workers = tuple(
        Placement(rank=rank, node_id=f"n{rank}", node_name=f"n{rank}", device="cpu", share=share)
        for rank, share in enumerate(shares)
    )
    return Plan(
        workers=workers,
        hardware_class="cpu:AVX2",
        cores_per_worker=1,
        memory_per_worker=GIB,
        microbatches=max(end for _, end in shares),
        most_workers=most_workers,
        summary="as the test wants it",
        reasons=(),
    )


def profile_of(**changes: Any) -> Profile:
    """A small model's, on a node of the usual class."""
    fields: dict[str, Any] = {
        "hardware_class": "cpu:AVX2", "device": "cpu", "cells": (CellTime(samples=4, seconds=0.01),), "cell_samples": 4,
        "update_s": 0.001, "state_bytes": 4000, "activation_bytes": 1000, "worker_bytes": 50 * 2**20,
        "exchange_bytes": 1000, "build_s": 0.1, "at": 1.0,
    }  # fmt: skip
    return Profile(**{**fields, **changes})
