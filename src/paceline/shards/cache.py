"""Shards on a node: fetched and unpacked by need, one file each, by whichever worker of the node comes first."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paceline.errors import InvalidSpec, PacelineError
from paceline.shards.data import Place, Shard, ShardedData
from paceline.shards.files import changed, local_path, open_file
from paceline.shards.folder import PATIENCE_S, BoundedFolder, NoRoom, used_folder
from paceline.shards.formats import unpack

CHUNK_BYTES = 8 * 2**20


class ShardCache:
    """All shards of one data, as if they were there."""

    def __init__(self, data: ShardedData, place: Place) -> None:
        self._shards, self._storage = data.shards, data.storage
        folder, self._used = used_folder(place.folder, _key(data))
        self._folder = BoundedFolder(folder, data.cache, place.progressed)
        self._mapped: dict[int, Unpacked] = {}
        self._names: dict[int, str] = {}

    def take(self, shard: int, rows: NDArray[np.int64]) -> pa.Table:
        """These samples of a shard, in this order; it is fetched where it is not there."""
        self._let_go()
        while shard not in self._mapped:
            self.fetch(shard)
            with contextlib.suppress(FileNotFoundError):  # evicted in between
                self._mapped[shard] = Unpacked(self._folder.path / self._name(shard))
        return self._mapped[shard].take(rows)

    def forget_others(self, shards: Collection[int]) -> None:
        """Unmap all shards but these."""
        for shard in set(self._mapped) - set(shards):
            del self._mapped[shard]

    def _let_go(self) -> None:
        """Of what was evicted: its room is free only when nobody maps it."""
        self.forget_others([shard for shard in self._mapped if self._folder.touch(self._name(shard))])

    def fetch(self, shard: int) -> None:
        """Have the shard in the folder, for the moment. Raises what its file's reading does, and InvalidSpec."""
        try:
            while not self._fetch(shard, (), PATIENCE_S):
                self._folder.wait()
        except NoRoom as full:
            raise InvalidSpec(
                f"there is no room for {self._shards[shard].url} in a cache of {self._folder.bound} bytes.",
                "Give a larger cache=.",
            ) from full

    def fetch_ahead(self, shard: int, soon: Collection[int]) -> None:
        """Fetch a shard where those that are needed `soon` leave it room, and nobody else does it already."""
        with contextlib.suppress(NoRoom):
            self._fetch(shard, {self._name(other) for other in soon}, 0.0)

    def _fetch(self, shard: int, spared: Collection[str], patience_s: float) -> bool:
        """False where another is at it."""
        name = self._name(shard)
        with self._folder.alone(name, wait=False) as mine:
            if not mine:
                return False
            if self._folder.touch(name):
                return True
            found = self._shards[shard]
            with self._local(found, spared, patience_s) as path, self._folder.writing(spared, patience_s) as part:
                unpack(found.url, path, found.counted, part)
                if _name_of(found) != name:
                    raise changed(found.url)
                part.publish(name)
        return True

    @contextlib.contextmanager
    def _local(self, shard: Shard, spared: Collection[str], patience_s: float) -> Iterator[Path]:
        """The file as it is, on this node: its own, or fetched for the while."""
        path = local_path(shard.url)
        file = open_file(shard.url, self._storage)
        if path is not None:
            if file.version() != shard.version:
                raise changed(shard.url)
            yield path
            return
        with self._folder.writing(spared, patience_s) as part:
            for start in range(0, shard.version.nbytes, CHUNK_BYTES):
                part.write(file.read(start, min(start + CHUNK_BYTES, shard.version.nbytes), shard.version))
            yield part.path

    def _name(self, shard: int) -> str:
        """Of the unpacked file, for as long as we train."""
        if shard not in self._names:
            self._names[shard] = _name_of(self._shards[shard])
        return self._names[shard]


def _name_of(shard: Shard) -> str:
    """A local file that was written anew has another."""
    path = local_path(shard.url)
    written_at = path.stat().st_mtime_ns if path is not None and path.exists() else None
    return _digest(shard.url, shard.version, shard.counted.fields, written_at)


class Unpacked:
    """A mapped Arrow file."""

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches])

    def take(self, rows: NDArray[np.int64]) -> pa.Table:
        held_by = np.searchsorted(self._ends, rows, side="right")
        numbers = np.unique(held_by)
        parts = [self._part(int(number), rows[held_by == number]) for number in numbers]
        places = np.concatenate([np.flatnonzero(held_by == number) for number in numbers])
        return pa.Table.from_batches(parts).take(np.argsort(places))

    def _part(self, number: int, rows: NDArray[np.int64]) -> pa.RecordBatch:
        batch = self._batches[number]
        return batch.take(pa.array(rows - (self._ends[number] - batch.num_rows)))


class Prefetcher:
    """One thread that fetches what is wanted next, as far as there is room."""

    def __init__(self, cache: ShardCache) -> None:
        self._cache = cache
        self._changed = threading.Condition()
        self._wanted: Sequence[int] = ()
        self._done: set[int] = set()
        self._started = False

    def want(self, shards: Sequence[int]) -> None:
        """Fetch these, in their order, instead of what was wanted before."""
        with self._changed:
            self._wanted = shards
            self._changed.notify()
        if not self._started:
            self._started = True
            threading.Thread(target=self._run, name="prefetch", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._left)
                wanted = self._wanted
                self._done &= set(wanted)
            shard = next(shard for shard in wanted if shard not in self._done)
            with contextlib.suppress(PacelineError, OSError):  # who needs the shard meets it again, and raises it
                self._cache.fetch_ahead(shard, wanted)
            self._done.add(shard)

    def _left(self) -> bool:
        return not self._done.issuperset(self._wanted)


def _key(data: ShardedData) -> str:
    return _digest(data.files, data.cache, [shard.version for shard in data.shards], data.shards[0].counted.fields)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
