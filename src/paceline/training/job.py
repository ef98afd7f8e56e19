"""One worker's part of one attempt: build, train rounds, evaluate, save."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from paceline.digest import model_digest
from paceline.errors import NonFinite, PacelineError, ProtocolError
from paceline.grid import Grid, scaled_share
from paceline.messages import (
    Checked,
    CheckpointRef,
    CheckpointWritten,
    CheckRound,
    Evaluated,
    EvaluateRound,
    Group,
    Message,
    Pace,
    PeerLost,
    Progressed,
    Ready,
    Saved,
    SaveRound,
    Setup,
    Suspected,
    Trained,
    TrainRound,
    Warned,
)
from paceline.shards.data import Place
from paceline.stop import step_bound
from paceline.training.batchnorm import BatchNormPool
from paceline.training.checkpoint import (
    Tensors,
    load_training,
    model_tensors,
    save_model,
    save_training,
    training_bytes,
    training_tensors,
)
from paceline.training.data import CellRequest, Source, check_sizes, fingerprint, open_source
from paceline.training.evaluate import evaluate
from paceline.training.exact import ExactTrainer
from paceline.training.group import LostPeer, WorkerGroup
from paceline.training.monitor import Monitor
from paceline.training.packages import NodeCache, open_package
from paceline.training.program import build
from paceline.training.sanity import SuspectStep
from paceline.training.seeds import make_deterministic
from paceline.transfer import BlobStore, disk_error

PROGRESS_EVERY_S = 0.25


class TrainingJob:
    """Built from a Setup; then does what each round asks. `send` may be called from any thread."""

    def __init__(
        self,
        setup: Setup,
        cache: NodeCache,
        blobs: BlobStore,
        scratch: Path,
        address: str,
        send: Callable[[Message], None],
        monitor: Monitor,
    ) -> None:
        submission, self._options = setup.submission, setup.submission.options
        options = self._options
        self._rank, self._blobs, self._scratch, self._send = setup.rank, blobs, scratch, send
        self._monitor = monitor
        make_deterministic(options.threads, options.reproducible)
        device = torch.device(setup.device)
        fields = open_package(submission.program, cache)
        self.program = build(fields, options.seed, device, options.precision)
        place = Place(cache.folder / "shards", monitor.fetched)
        self._train = open_source(
            open_package(submission.train_data, cache), options.seed, fields["augment"], fields["collate"], place
        )
        self._val: Source | None = None
        if submission.val_data is not None:
            data = open_package(submission.val_data, cache)
            self._val = open_source(data, options.seed, None, fields["collate"], place)
        self.grid = Grid(
            len(self._train),
            options.batch_size,
            options.microbatches,
            options.drop_last,
            options.seed,
            self._train.order,
        )
        check_sizes(self._train, self._val, options.batch_size)
        bound = step_bound(options.stop, self.grid.steps_per_epoch)
        self._total_samples = None if bound is None else self.grid.samples_seen(bound)
        self._best: Tensors | None = None
        self._step = 0  # the model's state is that after so many steps
        if setup.checkpoint is not None:
            self._best = load_training(cache.path(setup.checkpoint.blob), self.program.model, self.program.optimizer)
            self._step = setup.checkpoint.step
        self._pool = BatchNormPool(self.program.model)
        self._store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
        self._group: tuple[WorkerGroup, ExactTrainer] | None = None
        self._left: list[WorkerGroup] = []  # groups given up: their threads may still wait inside torch
        self._given_up: dict[str, threading.Event] = {}
        self._batches: Iterator[Any] | None = None
        self._writing: threading.Thread | None = None

    def ready(self) -> Ready:
        """What the master compares and plans with."""
        return Ready(
            fingerprint="/".join(fingerprint(source) for source in (self._train, self._val) if source is not None),
            train_samples=len(self._train),
            val_samples=len(self._val) if self._val is not None else 0,
            parameters=sum(p.numel() for p in self.program.parameters),
            store_port=self._store.port,
        )

    # ---- training ----

    def train(self, order: TrainRound) -> Trained | Suspected | PeerLost:
        """Do the round's steps. Raises what the user's code raises."""
        losses: list[float] = []
        started = time.perf_counter()
        try:
            workers, trainer = self._join(order.group)
            if order.source is not None:
                self._copy_state(order, workers)
            self._before_steps(order)
            pace = self._do_steps(order, workers, trainer, losses)
        except LostPeer as lost:
            self._leave()
            return PeerLost(step=self._step, losses=tuple(losses), reason=str(lost)[:500])
        except SuspectStep as suspect:
            self._batches = None  # the step's own were read
            return Suspected(
                from_step=order.from_step,
                step=self._step,
                losses=tuple(losses),
                seconds=time.perf_counter() - started,
                suspects=tuple(order.group.members[place] for place in suspect.places),
                reason=suspect.reason,
                evidence=suspect.evidence,
            )
        return Trained(
            from_step=order.from_step,
            step=self._step,
            losses=tuple(losses),
            seconds=time.perf_counter() - started,
            pace=pace,
        )

    def _before_steps(self, order: TrainRound) -> None:
        if order.mark_best:
            self._best = model_tensors(self.program.model)
        if order.checkpoint and self._rank == order.group.members[0]:
            with self._monitor.doing("checkpoint"):
                self._write_checkpoint(order.from_step)

    def _do_steps(self, order: TrainRound, workers: WorkerGroup, trainer: ExactTrainer, losses: list[float]) -> Pace:
        warm = self._batches is not None
        if self._batches is None:
            self._batches = self._train.stream(self._requests(workers.shares[workers.place], order.from_step))
        self.program.model.train()
        since = self._monitor.read()
        reporting = self._rank == order.group.members[0]
        started = reported = time.monotonic()
        for step in range(order.from_step, order.to_step):
            losses.append(trainer.step(step, self._batches, trusted=step == order.trusted_step))
            self._step = self._monitor.step = step + 1
            if not warm:
                warm, since = True, self._monitor.read()
            now = time.monotonic()
            if reporting and now - reported > PROGRESS_EVERY_S and step + 1 < order.to_step:
                reported = now
                samples = self.grid.samples_seen(step + 1) - self.grid.samples_seen(order.from_step)
                self._send(Progressed(step=step + 1, loss=losses[-1], samples_per_s=samples / (now - started)))
        self._pool.refuse_other_updates()
        return since.until(self._monitor.read())

    def check(self, order: CheckRound) -> Checked:
        """Compute again what another member computed of the next step; this one's state stays as it is."""
        _, trainer = self._join(order.group)
        place = order.group.members.index(order.rank)
        batches = self._train.stream(self._requests(order.group.shares[place], order.step))
        self.program.model.train()
        evidence, error = trainer.check(order.step, place, batches)
        self._batches = None
        return Checked(step=order.step, rank=order.rank, evidence=evidence, error=error.to_json() if error else None)

    def _requests(self, whole_share: tuple[int, int], from_step: int) -> Iterator[CellRequest]:
        """The share's cells from `from_step` on, without end."""
        for step in count(from_step):
            share = scaled_share(whole_share, self.grid.num_cells(step), self.grid.num_cells(0))
            epoch, _ = self.grid.locate(step)
            for cell in range(*share):
                yield CellRequest(epoch, self.grid.cell_samples(step, cell))

    # ---- the group ----

    def _join(self, group: Group) -> tuple[WorkerGroup, ExactTrainer]:
        """The trainer of this group; a new group is formed only when the master names one. Its shares may change."""
        if self._group is None or self._group[0].key != group.key:
            self._leave()
            given_up = self._given_up.setdefault(group.key, threading.Event())
            workers = WorkerGroup(group, self._rank, self.program.device, self._monitor, given_up)
            trainer = ExactTrainer(
                self.program,
                self.grid,
                workers,
                self._pool,
                self._options.clip_grad_norm,
                self._total_samples,
                self._monitor,
            )
            self._group = (workers, trainer)
        workers, trainer = self._group
        if workers.shares != group.shares:
            workers.shares, self._batches = group.shares, None  # what was read ahead belongs to the former share
        return workers, trainer

    def _leave(self) -> None:
        """Forget the group. What was read ahead belongs to its share, or to a step that was torn."""
        if self._group is not None:
            workers, trainer = self._group
            trainer.close()
            self._left.append(workers)
        self._group, self._batches = None, None

    def give_up(self, key: str) -> None:
        """A member of that group is gone; called from the reading thread."""
        self._given_up.setdefault(key, threading.Event()).set()

    def _copy_state(self, order: TrainRound, workers: WorkerGroup) -> None:
        """Members that are behind take model, optimizer and best model from one that is not."""
        mine = self._rank == order.source
        assert order.source is not None
        data = training_bytes(self.program.model, self.program.optimizer, self._best) if mine else None
        received = workers.broadcast(data, order.source)
        if self._rank in order.behind:
            path = self._scratch / "copied.safetensors"
            path.write_bytes(received)
            self._best = load_training(path, self.program.model, self.program.optimizer)
            path.unlink()
            self._pool.note_other_buffers()
            self._step = order.from_step

    # ---- evaluation, model, checkpoint ----

    def evaluate(self, order: EvaluateRound) -> Evaluated:
        """Evaluate this worker's share of the validation grid."""
        started = time.monotonic()
        if self._val is None:
            raise ProtocolError("an evaluation was asked for, and there is no validation data.")
        members = order.group.members
        with self._monitor.doing("evaluation"):
            first, rows, finals = evaluate(
                self.program,
                self._val,
                self._options.batch_size,
                members.index(self._rank),
                len(members),
                self._monitor,
            )
        return Evaluated(
            step=order.step, first_cell=first, rows=tuple(rows), finals=finals, seconds=time.monotonic() - started
        )

    def save(self, order: SaveRound) -> Saved:
        """Upload the model that is to be delivered. Raises NonFinite rather than deliver NaN."""
        tensors = self._best if order.which == "best" and self._best is not None else model_tensors(self.program.model)
        bad = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
        if bad:
            raise NonFinite(
                f"the model after step {order.step} is not finite: {bad[0]!r} holds NaN or infinity.",
                "Lower the learning rate or set clip_grad_norm=1.0.",
            )
        path = self._scratch / "model.safetensors"
        save_model(tensors, path)
        return Saved(
            step=order.step, blob=self._blobs.upload_file(path), nbytes=path.stat().st_size, digest=model_digest(path)
        )

    def _write_checkpoint(self, step: int) -> None:
        """Copy the state now; write and upload it beside the training."""
        if self._writing is not None:
            self._writing.join()
        tensors, metadata = training_tensors(self.program.model, self.program.optimizer, self._best)

        def write() -> None:
            path = self._scratch / f"checkpoint-{step}.safetensors"
            try:
                save_training(tensors, metadata, path)
                blob = self._blobs.upload_file(path)
                nbytes = path.stat().st_size
            except PacelineError as error:
                self._send(Warned(error=error.to_json()))
            except OSError as error:
                self._send(Warned(error=disk_error(error, path).to_json()))
            else:
                self._send(CheckpointWritten(checkpoint=CheckpointRef(step=step, blob=blob, nbytes=nbytes)))
            finally:
                path.unlink(missing_ok=True)

        self._writing = threading.Thread(target=write, name="checkpoint", daemon=True)
        self._writing.start()
