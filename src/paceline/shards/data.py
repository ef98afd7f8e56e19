"""Data that is larger than a node: a list of shards, indexed once, read through a bounded cache on each node."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.errors import InvalidSpec
from paceline.grid import ShardOrder
from paceline.shards.files import Version, buffered, local_path, open_file
from paceline.spec import parse_bytes

if TYPE_CHECKING:
    from paceline.shards.formats import Counted

INDEXED_AT_ONCE = 16


@dataclass(frozen=True)
class Shard:
    """One file, as it was indexed."""

    url: str
    version: Version
    counted: Counted


@dataclass(frozen=True)
class Place:
    """Where a worker keeps shards. folder: shared by the node's workers. progressed: told of bytes as they come."""

    folder: Path
    progressed: Callable[[int], None] = lambda _nbytes: None


class ShardedData:
    """Samples in files that need not fit on a node: Parquet, Arrow, safetensors, or tar as WebDataset writes it.

    files: paths that every node has, or http(s)://, s3://, gs:// or az:// URLs, in their order.
    target: the field that is the target. The other fields that hold one number a sample become one float32 input, each
        field of arrays one more. Without it, a sample is a dict of all fields.
    fields: those to read; all, where left out.
    decode: `decode(dict of fields) -> sample`, where a sample must be made of what is stored; instead of target=.
    cache: bytes, or e.g. "4GiB", that this data may take on each node's disk.
    window: files whose samples are shuffled together. Two windows must fit into the cache. It belongs to the spec:
        another one gives another model.
    storage: options of the object store, as obstore takes them, e.g. {"endpoint": "https://…"}. Credentials don't
        belong here; nodes have their own, from their environment.

    The files are indexed when the job is submitted: footers and headers are read, of tar files every header. Where only
    the nodes reach them, give a callable that returns ShardedData; each worker then indexes them.

    Raises InvalidSpec; indexing raises NotFound, DataUnreachable and Corrupt too.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        *,
        target: str | None = None,
        fields: Iterable[str] | None = None,
        decode: Callable[[dict[str, Any]], Any] | None = None,
        cache: int | str = "4GiB",
        window: int = 4,
        storage: Mapping[str, str] | None = None,
    ) -> None:
        if isinstance(files, str | Path) or not files:
            raise InvalidSpec(f"files= is {files!r}.", "Give a list of paths or URLs.")
        if target is not None and decode is not None:
            raise InvalidSpec("target= and decode= were given.", "Let decode= return (inputs, target).")
        if window < 1:
            raise InvalidSpec(f"window={window}.", "Give the number of files to shuffle together, 1 or more.")
        self.files = tuple(_absolute(str(file)) for file in files)
        self.target, self.decode, self.window = target, decode, window
        self.fields = None if fields is None else tuple(fields)
        self.storage = dict(storage or {})
        try:
            self.cache = parse_bytes(cache)
        except ValueError as error:
            raise InvalidSpec(f"cache={cache!r} is no amount of bytes.", "Write e.g. cache='4GiB'.") from error

    def __len__(self) -> int:
        return sum(shard.counted.samples for shard in self.shards)

    @property
    def order(self) -> ShardOrder:
        return ShardOrder(tuple(shard.counted.samples for shard in self.shards), self.window)

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """The index; it travels with the data."""
        with ThreadPoolExecutor(INDEXED_AT_ONCE) as pool:
            found = list(pool.map(self._indexed, self.files))
        fields = self._common_fields(found)
        shards = tuple(_with_fields(shard, fields) for shard in found)
        self._check_cache(shards)
        return shards

    def _indexed(self, url: str) -> Shard:
        count = _formats().count
        file = open_file(url, self.storage)
        version = file.version()
        return Shard(url, version, count(url, buffered(file, version), version.nbytes))

    def _common_fields(self, found: list[Shard]) -> tuple[str, ...]:
        first = found[0].counted.fields
        for shard in found:
            if set(shard.counted.fields) != set(first):
                raise InvalidSpec(
                    f"{shard.url} has the fields {', '.join(shard.counted.fields)}; "
                    f"{found[0].url} has {', '.join(first)}.",
                    "Give files of one kind.",
                )
        wanted = dict.fromkeys([*(self.fields or first), *([self.target] if self.target else [])])
        for name in wanted:
            if name not in first:
                raise InvalidSpec(f"the shards have no field {name!r}.", f"They have: {', '.join(first)}.")
        return tuple(wanted)

    def _check_cache(self, shards: tuple[Shard, ...]) -> None:
        """Refuse a cache in which two windows, and a file on its way, don't fit."""
        unpacked = sorted((shard.counted.unpacked for shard in shards), reverse=True)
        coming = max(shard.version.nbytes if local_path(shard.url) is None else 0 for shard in shards)
        needed = sum(unpacked[: 2 * self.window]) + coming
        if needed > self.cache:
            raise InvalidSpec(
                f"cache={self.cache} bytes are too few for two windows of {self.window} files: "
                f"they take about {needed} bytes.",
                f"Give cache={needed}, a smaller window=, or smaller files.",
            )


def _formats() -> Any:
    try:
        from paceline.shards import formats
    except ImportError as absent:
        raise InvalidSpec(
            f"ShardedData needs {absent.name}, which is not installed.",
            "Run `pip install 'paceline[data]'` here and on the nodes.",
        ) from absent
    return formats


def _absolute(url: str) -> str:
    local = local_path(url)
    return url if local is None else os.path.abspath(local)


def _with_fields(shard: Shard, fields: tuple[str, ...]) -> Shard:
    return replace(shard, counted=replace(shard.counted, fields=fields))
