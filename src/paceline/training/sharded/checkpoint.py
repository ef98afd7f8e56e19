"""Checkpoints of a sharded model: torch's distributed checkpoint, each member's file a blob, named by a manifest.

A member writes its own shards only, and reads what overlaps with its own: so a checkpoint of any number of workers
loads on any other. It exists once the manifest does, which the first member uploads after all files are blobs.
"""

from __future__ import annotations

import json
import shutil
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner

from paceline.errors import InvalidSpec, PacelineError
from paceline.messages.from_worker import CheckpointWritten, Warned
from paceline.messages.message import CheckpointRef
from paceline.training.checkpoint import scalar_tensor, tensors_only
from paceline.training.group import LostPeer
from paceline.training.mode import Around, damage_of
from paceline.training.program import Program
from paceline.training.sharded.group import ShardGroup

METADATA = ".metadata"
Tensors = dict[str, torch.Tensor]


class ShardedState:
    """What a member holds of model, best model and optimizer, by names that no number of workers changes."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._best: Tensors = {}

    def mark_best(self) -> None:
        self._best = {name: tensor.detach().clone() for name, tensor in self._model().items()}

    def to_deliver(self, which: str) -> Tensors:
        return self._best if which == "best" and self._best else self._model()

    def _model(self) -> Tensors:
        return tensors_only(self._program.model.state_dict())

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self._program.model.named_parameters() if p.requires_grad}

    def tensors(self) -> Tensors:
        """All of it, in place: nothing is copied."""
        held = {f"model/{name}": tensor.detach() for name, tensor in self._model().items()}
        held |= {f"best/{name}": tensor for name, tensor in self._best.items()}
        for name, parameter in self._trained().items():
            for key, value in self._program.optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    held[f"optim/{name}/{key}"] = value
        return held

    def plain(self) -> dict[str, Any]:
        """What else the optimizer keeps, for JSON. Raises InvalidSpec where that can't be."""
        optimizer = self._program.optimizer
        groups = [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]
        scalars = {
            name: {k: v for k, v in optimizer.state.get(p, {}).items() if not isinstance(v, torch.Tensor)}
            for name, p in self._trained().items()
        }
        try:
            return dict(json.loads(json.dumps({"groups": groups, "scalars": scalars}, default=scalar_tensor)))
        except TypeError as odd:
            raise InvalidSpec(
                f"the optimizer keeps state that can't be checkpointed: {odd}.",
                "Keep tensors, numbers, strings and lists.",
            ) from None

    def prepare(self, stored: Mapping[str, Any], plain: Mapping[str, Any]) -> Tensors:
        """Make room for everything that is stored, and return it, to be filled in place."""
        model, trained, optimizer = self._model(), self._trained(), self._program.optimizer
        room = {f"model/{name}": tensor.detach() for name, tensor in model.items()}
        if any(name.startswith("best/") for name in stored):
            self._best = {name: torch.empty_like(tensor).detach() for name, tensor in model.items()}
            room |= {f"best/{name}": tensor for name, tensor in self._best.items()}
        for entry, meta in stored.items():
            if entry.startswith("optim/"):
                name, key = entry.removeprefix("optim/").rsplit("/", 1)
                optimizer.state[trained[name]][key] = room[entry] = _room(trained[name], meta)
        for name, scalars in plain["scalars"].items():
            optimizer.state[trained[name]].update(scalars) if scalars else None
        for group, values in zip(optimizer.param_groups, plain["groups"], strict=True):
            group.update(values)
        return room


def _room(parameter: torch.nn.Parameter, meta: TensorStorageMetadata) -> torch.Tensor:
    """Of a parameter's shape: cut as it is; of any other: whole."""
    dtype = meta.properties.dtype
    if meta.size == parameter.shape:
        return torch.zeros_like(parameter, dtype=dtype, requires_grad=False).detach()
    return torch.zeros(meta.size, dtype=dtype)


class Checkpoints:
    """Writes and loads them, for one member."""

    def __init__(self, around: Around, group: ShardGroup) -> None:
        self._around, self._group = around, group
        self._uploading: threading.Thread | None = None

    def write(self, step: int, state: ShardedState, where: Path) -> None:
        """Write this member's file now, a tensor at a time, and upload it beside the training.

        where: a folder, the quicker the better: training stands still for the writing.
        """
        if self._uploading is not None:
            self._uploading.join()
        folder = where / f"checkpoint-{step}.{self._group.place}"
        writer = dcp.FileSystemWriter(folder, sync_files=False)  # what counts is the master's copy, which is synced
        plain = state.plain()
        try:
            with self._group.exchange():
                dcp.save(state.tensors(), storage_writer=writer, process_group=self._group.beside)
        except CheckpointException as failed:
            shutil.rmtree(folder, ignore_errors=True)
            self._warn(PacelineError(f"the checkpoint of step {step} can't be written: {failed}.", "Free some space."))
            return
        self._uploading = threading.Thread(
            target=self._upload, args=(step, folder, plain), name="checkpoint", daemon=True
        )
        self._uploading.start()

    def _upload(self, step: int, folder: Path, plain: dict[str, Any]) -> None:
        """Of what all members uploaded, the first makes the manifest. One failure, and there is no checkpoint."""
        blobs, mine, error = self._around.blobs, {}, None
        nbytes = sum(path.stat().st_size for path in folder.iterdir())
        try:
            mine = {path.name: blobs.upload_file(path) for path in sorted(folder.iterdir())}
        except PacelineError as failed:
            error = failed
        try:
            parts = self._group.everyones((mine, nbytes, error is None))
        except LostPeer:
            return  # the attempt is over
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if error is not None:
            self._warn(error)
        elif self._group.place == 0 and all(done for _, _, done in parts):
            files = {name: blob for part, _, _ in parts for name, blob in part.items()}
            self._publish(step, {"files": files, **plain}, sum(size for _, size, _ in parts))

    def _publish(self, step: int, manifest: dict[str, Any], nbytes: int) -> None:
        path = self._around.scratch / f"checkpoint-{step}.json"
        path.write_text(json.dumps(manifest))
        try:
            blob = self._around.blobs.upload_file(path)
        except PacelineError as error:
            self._warn(error)
            return
        finally:
            path.unlink()
        files = tuple(dict.fromkeys(manifest["files"].values()))
        ref = CheckpointRef(step=step, blob=blob, nbytes=nbytes, files=files)
        self._around.send(CheckpointWritten(checkpoint=ref))

    def _warn(self, error: PacelineError) -> None:
        self._around.send(Warned(error=error.to_json()))

    def load(self, ref: CheckpointRef, state: ShardedState) -> None:
        """Read this member's part into its shards. Raises DamagedCheckpoint."""
        with damage_of(ref):
            manifest = json.loads(self._around.cache.path(ref.blob).read_text())
            folder = self._around.scratch / f"from-{ref.step}"
            folder.mkdir()
            reader = _BlobReader(folder, manifest["files"], self._around)
            load_into(state, reader, manifest)


def load_into(state: ShardedState, reader: dcp.FileSystemReader, plain: Mapping[str, Any]) -> None:
    """Fill the state with what overlaps with its shards. Raises what the reader raises."""
    stored = reader.read_metadata().state_dict_metadata
    try:
        with warnings.catch_warnings():  # that it needs no collective is meant so
            warnings.simplefilter("ignore", UserWarning)
            dcp.load(state.prepare(stored, plain), storage_reader=reader, no_dist=True)
    except CheckpointException as failed:
        cause, _ = next(iter(failed.failures.values()))
        raise cause from failed


class _BlobReader(dcp.FileSystemReader):
    """Reads a checkpoint's files out of blobs, each checked, and fetched only where this member needs some of it."""

    def __init__(self, folder: Path, files: Mapping[str, str], around: Around) -> None:
        super().__init__(folder)
        self._folder, self._files, self._around = folder, files, around

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self._fetch(METADATA)
        return super().read_metadata()

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Any:
        for name in {self.storage_data[item.storage_index].relative_path for item in plan.items}:
            self._fetch(name)
        return super().read_data(plan, planner)

    def _fetch(self, name: str) -> None:
        link = self._folder / name
        if not link.exists():
            link.symlink_to(self._around.cache.checked(self._files[name]))
