"""Exact training's way to hold the model: every worker has a copy of its own, to the bit the same as the others'."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from paceline.digest import model_digest
from paceline.errors import NonFinite, PacelineError
from paceline.messages.from_worker import Checked, CheckpointWritten, Saved, Warned
from paceline.messages.message import CheckpointRef
from paceline.messages.to_worker import CheckRound, EvaluateRound, Group, SaveRound, TrainRound
from paceline.training.batchnorm import BatchNormPool
from paceline.training.checkpoint import (
    Snapshot,
    Tensors,
    load_training,
    model_tensors,
    save_tensors,
    training_bytes,
)
from paceline.training.data import Source
from paceline.training.evaluate import evaluate, share_of
from paceline.training.exact import ExactTrainer
from paceline.training.group import WorkerGroup
from paceline.training.mode import Around, Course, Evaluation
from paceline.training.program import build
from paceline.training.sanity import Sanity
from paceline.transfer import disk_error


class Replica:
    """Built from the unpickled fields of the program, and at once brought to the setup's checkpoint."""

    def __init__(self, around: Around, fields: dict[str, Any]) -> None:
        self._around = around
        self._options = around.setup.submission.options
        self._program = build(fields, self._options.seed, around.device, self._options.precision)
        self._best: Tensors | None = None
        checkpoint = around.setup.checkpoint
        if checkpoint is not None:
            path = around.cache.path(checkpoint.blob)
            self._best = load_training(path, self._program.model, self._program.optimizer)
        self._pool = BatchNormPool(self._program.model)
        self._sanity = Sanity()
        self._group: tuple[WorkerGroup, ExactTrainer] | None = None
        self._left: list[WorkerGroup] = []  # kept: to end a gloo group joins its threads, which may wait for ever
        self._given_up: dict[str, threading.Event] = {}
        self._snapshot = Snapshot()
        self._writing: threading.Thread | None = None

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self._program.parameters)

    # ---- the group ----

    def begin(self, course: Course) -> None:
        self._course = course

    def join(self, group: Group) -> ExactTrainer:
        """A new group is formed only when the master names one. Its shares may change."""
        if self._group is None or self._group[0].key != group.key:
            self.leave()
            given_up = self._given_up.setdefault(group.key, threading.Event())
            around = self._around
            workers = WorkerGroup(group, around.setup.rank, around.device, around.monitor, given_up)
            clip = self._options.clip_grad_norm
            trainer = ExactTrainer(self._program, self._course, workers, self._pool, clip, around.monitor, self._sanity)
            self._group = (workers, trainer)
        workers, trainer = self._group
        workers.shares = group.shares
        return trainer

    def leave(self) -> None:
        if self._group is not None:
            workers, trainer = self._group
            trainer.close()
            self._left.append(workers)
        self._group = None

    def give_up(self, key: str) -> None:
        self._given_up.setdefault(key, threading.Event()).set()

    def copy_state(self, order: TrainRound) -> bool:
        """Model, optimizer and best model, from one that is not behind."""
        assert order.source is not None
        assert self._group is not None
        rank = self._around.setup.rank
        model, optimizer = self._program.model, self._program.optimizer
        data = training_bytes(model, optimizer, self._best) if rank == order.source else None
        received = self._group[0].broadcast(data, order.source)
        if rank not in order.behind:
            return False
        path = self._around.scratch / "copied.safetensors"
        path.write_bytes(received)
        self._best = load_training(path, model, optimizer)
        path.unlink()
        self._pool.note_other_buffers()
        return True

    # ---- rounds ----

    def mark_best(self) -> None:
        self._best = model_tensors(self._program.model)

    def begin_training(self) -> None:
        self._program.model.train()

    def end_training(self) -> None:
        self._pool.refuse_other_updates()

    def check(self, order: CheckRound, batches: Iterator[Any]) -> Checked:
        assert self._group is not None
        self._program.model.train()
        evidence, error = self._group[1].check(order.step, order.group.members.index(order.rank), batches)
        return Checked(step=order.step, rank=order.rank, evidence=evidence, error=error.to_json() if error else None)

    def evaluate(self, order: EvaluateRound, source: Source) -> Evaluation:
        members = order.group.members
        place = members.index(self._around.setup.rank)
        share = share_of(self._program, source, self._options.batch_size, place, len(members))
        return evaluate(self._program, source, self._options.batch_size, share, self._around.monitor)

    # ---- what is stored ----

    def save(self, order: SaveRound) -> Saved:
        best = self._best if order.which == "best" else None
        tensors = best if best is not None else model_tensors(self._program.model)
        bad = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
        if bad:
            raise NonFinite(
                f"the model after step {order.step} is not finite: {bad[0]!r} holds NaN or infinity.",
                "Lower the learning rate or set clip_grad_norm=1.0.",
            )
        path = self._around.scratch / "model.safetensors"
        save_tensors(tensors, path)
        blob = self._around.deliver(path)
        return Saved(step=order.step, blob=blob, nbytes=path.stat().st_size, digest=model_digest(path))

    def write_checkpoint(self, order: TrainRound) -> None:
        """The first member copies its state now; a thread writes and uploads it."""
        if self._around.setup.rank != order.group.members[0]:
            return
        if self._writing is not None:
            self._writing.join()  # what it writes lies where the next snapshot will
        tensors, metadata = self._snapshot.take(self._program.model, self._program.optimizer, self._best)
        work = threading.Thread(
            target=self._write, args=(order.from_step, tensors, metadata), name="checkpoint", daemon=True
        )
        self._writing = work
        work.start()

    def _write(self, step: int, tensors: Tensors, metadata: dict[str, str]) -> None:
        around = self._around
        path = around.scratch / f"checkpoint-{step}.safetensors"
        try:
            save_tensors(tensors, path, metadata)
            blob = around.blobs.upload_file(path)
            nbytes = path.stat().st_size
        except PacelineError as error:
            around.send(Warned(error=error.to_json()))
        except OSError as error:
            around.send(Warned(error=disk_error(error, path).to_json()))
        else:
            around.send(CheckpointWritten(checkpoint=CheckpointRef(step=step, blob=blob, nbytes=nbytes)))
        finally:
            path.unlink(missing_ok=True)
