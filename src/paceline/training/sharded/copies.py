"""Copies of all shards in the nodes' memory: a checkpoint that never touches a disk, nor the master.

A member writes its file into a file system in its node's memory and sends it to one member on another node. So the loss
of any process, and of any node whose neighbour stays, leaves every file somewhere. The members of the next attempt, as
many as they may be, tell each other what their nodes have, and send each other what they need.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner

from paceline.errors import PacelineError
from paceline.messages.from_worker import Copied
from paceline.messages.to_worker import CopyOrder
from paceline.training.group import LostPeer
from paceline.training.mode import Around, DamagedCheckpoint
from paceline.training.sharded.checkpoint import METADATA, ShardedState, load_into
from paceline.training.sharded.group import ShardGroup
from paceline.transfer import disk_error

PLAIN = "plain.json"
Post = tuple[Path, int, int, int]  # a file of so many bytes, from the member at one place to the one at another


class Copies:
    """Makes and loads them, for one member."""

    def __init__(self, around: Around, group: ShardGroup) -> None:
        self._around, self._group = around, group
        self._sending: threading.Thread | None = None

    def wait(self) -> None:
        """Until nothing is on its way: one thing at a time goes beside the training."""
        if self._sending is not None:
            self._sending.join()

    def take(self, step: int, order: CopyOrder, state: ShardedState) -> None:
        """Write this member's file, and send it beside the training."""
        self.wait()
        started, folder = time.perf_counter(), self._around.copies / str(step)
        self.keep_only(order.kept, step)
        plain = json.dumps(state.plain())
        try:
            with self._group.exchange():
                writer = dcp.FileSystemWriter(folder, sync_files=False)
                dcp.save(state.tensors(), storage_writer=writer, process_group=self._group.beside)
        except CheckpointException as failed:  # all members are told of it
            self._tell(step, 0.0, PacelineError(f"the shards of step {step} can't be copied: {failed}."))
            return
        self._sending = threading.Thread(
            target=self._send, args=(step, folder, order.to, plain, started), name="copies", daemon=True
        )
        self._sending.start()

    def keep_only(self, *steps: int | None) -> None:
        """Remove the copies of all other steps from this node: half-made ones of an attempt that is over among them."""
        for folder in self._around.copies.glob("*"):
            if folder.name not in map(str, steps):
                shutil.rmtree(folder, ignore_errors=True)

    def _send(self, step: int, folder: Path, to: Sequence[int], plain: str, started: float) -> None:
        place = self._group.place
        mine = {path.name: path.stat().st_size for path in folder.glob(f"__{place}_*")}
        described = (folder / METADATA).read_bytes() if place == 0 else b""
        try:
            given = self._group.everyones((mine, described))
            posts = [
                (folder / name, nbytes, giver, to[giver])
                for giver, (files, _) in enumerate(given)
                if to[giver] != giver
                for name, nbytes in files.items()
            ]
            _describe(folder, given[0][1], plain, place)
            self._deliver(posts)
        except LostPeer:
            return  # the attempt is over
        except OSError as error:
            self._tell(step, time.perf_counter() - started, disk_error(error, folder))
        else:
            self._tell(step, time.perf_counter() - started)

    def _tell(self, step: int, seconds: float, error: PacelineError | None = None) -> None:
        self._around.send(Copied(step=step, seconds=seconds, error=error.to_json() if error else None))

    def _deliver(self, posts: Iterable[Post]) -> None:
        """All members at once, each its own part, straight between the files. Raises LostPeer, OSError."""
        place, beside = self._group.place, self._group.beside
        works, parts = list[Any](), []
        for path, nbytes, giver, taker in posts:
            if giver == place:
                works.append(dist.isend(_mapped(path, nbytes), group_dst=taker, group=beside))
            elif taker == place:
                part = path.with_name(f"{path.name}.{place}")
                _allocate(part, nbytes)
                works.append(dist.irecv(_mapped(part, nbytes), group_src=giver, group=beside))
                parts.append((part, path))
        try:
            for work in works:
                work.wait()
        except RuntimeError as error:
            raise LostPeer(str(error)) from error
        for part, path in parts:
            part.replace(path)

    # ---- the next attempt ----

    def load(self, step: int, state: ShardedState) -> None:
        """Raises DamagedCheckpoint, on all members alike, where some file is on none of their nodes; and LostPeer."""
        folder = self._around.copies / str(step)
        folder.mkdir(parents=True, exist_ok=True)
        own = (folder / METADATA, folder / PLAIN)
        described = (own[0].read_bytes(), own[1].read_text()) if all(path.exists() for path in own) else None
        found = next(filter(None, self._group.everyones(described)), None)
        if found is None:
            raise DamagedCheckpoint(step, "its copies are on no node of this attempt")
        _describe(folder, found[0], found[1], self._group.place)
        load_into(state, _Reader(folder, step, self), json.loads(found[1]))

    def gather(self, step: int, folder: Path, needed: Iterable[str]) -> None:
        """Call on all members: bring the files that each needs to its node."""
        have = {path.name: path.stat().st_size for path in folder.glob("__*")}
        members = self._group.everyones((have, sorted(set(needed) - set(have))))
        posts: list[Post] = []
        for taker, (_, lacking) in enumerate(members):
            for name in lacking:
                giver = next((place for place, (files, _) in enumerate(members) if name in files), None)
                if giver is None:
                    raise DamagedCheckpoint(step, f"the copy {name} is on no node of this attempt")
                posts.append((folder / name, members[giver][0][name], giver, taker))
        self._deliver(posts)


class _Reader(dcp.FileSystemReader):
    def __init__(self, folder: Path, step: int, copies: Copies) -> None:
        super().__init__(folder)
        self._folder, self._step, self._copies = folder, step, copies

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return super().read_metadata()

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Any:
        needed = {self.storage_data[item.storage_index].relative_path for item in plan.items}
        self._copies.gather(self._step, self._folder, needed)
        return super().read_data(plan, planner)


def _mapped(path: Path, nbytes: int) -> torch.Tensor:
    return torch.from_file(str(path), shared=True, size=nbytes, dtype=torch.uint8)


def _allocate(path: Path, nbytes: int) -> None:
    """Room for a file in memory; without it, writing to its mapping would end this process."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, nbytes)


def _describe(folder: Path, metadata: bytes, plain: str, place: int) -> None:
    """What each node has beside the files. Several workers of a node write the same."""
    for name, data in ((METADATA, metadata), (PLAIN, plain.encode())):
        part = folder / f"{name}.{place}"
        part.write_bytes(data)
        part.replace(folder / name)
