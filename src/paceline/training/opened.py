"""A job's data as a worker opens it, to train on it or to probe it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paceline.shards.data import Place
from paceline.spec import Submission, TrainOptions
from paceline.stop import step_bound
from paceline.training.data import Source, check_sizes, open_source
from paceline.training.mode import Course
from paceline.training.packages import NodeCache, open_package


@dataclass(frozen=True)
class Opened:
    train: Source
    val: Source | None
    course: Course


def open_data(
    submission: Submission, options: TrainOptions, fields: Mapping[str, Any], cache: NodeCache, place: Place
) -> Opened:
    """Open a job's data, and lay the grid over it. Raises InvalidSpec where they do not fit together.

    options: the submission's, or with the microbatches that a plan chose. fields: of its program. place: for shards.
    """
    augment, collate = fields["augment"], fields["collate"]
    train = open_source(open_package(submission.train_data, cache), options.seed, augment, collate, place)
    val: Source | None = None
    if submission.val_data is not None:
        val = open_source(open_package(submission.val_data, cache), options.seed, None, collate, place)
    check_sizes(train, val, options.batch_size)
    grid = options.grid(len(train), train.order)
    bound = step_bound(options.stop, grid.steps_per_epoch)
    return Opened(train, val, Course(grid, None if bound is None else grid.samples_seen(bound)))
