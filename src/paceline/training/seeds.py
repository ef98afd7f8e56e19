"""Determinism of one worker process: settings, and the seeds of microbatches and samples."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from paceline.grid import derive_seed


def make_deterministic(threads: int, reproducible: bool) -> None:
    """Fix whatever lets the same computation give other bits: threads, TF32, autotuning, unordered kernels.

    Call before the first op. 1 and 2 threads give different bits, so the number belongs to the spec.
    """
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    if reproducible:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms(True) without loading inductor
        # filling fresh memory only serves code that reads it uninitialised, and costs a pass over every tensor
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def seed_microbatch(seed: int, step: int, cell: int, device: torch.device) -> None:
    """Seed dropout and the like for one cell of one step, whichever worker computes it."""
    derived = derive_seed(seed, "cell", step, cell)
    _seed_torch(derived)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(derived)
    elif device.type == "mps":
        torch.mps.manual_seed(derived)


def _seed_torch(seed: int) -> None:
    """The CPU's generator alone: torch.manual_seed notes a stack trace for every absent accelerator, 0.8 ms a call."""
    torch.default_generator.manual_seed(seed)


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    _seed_torch(seed)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The seed under which one sample is loaded and augmented in one epoch."""
    return derive_seed(seed, "sample", epoch, index)
