"""Where shards lie: in a local file, behind HTTP(S), or in an object store. Read by ranges of bytes."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import httpx

from paceline.errors import Corrupt, DataUnreachable, InvalidSpec, NotFound, PacelineError

LEAST_READ_BYTES = 32 * 1024
MOST_READ_BYTES = 4 * 2**20
ATTEMPTS = 5
TIMEOUT_S = 30.0
Result = TypeVar("Result")


class Version(NamedTuple):
    """What tells a file from an earlier one in its place. etag: what its store says; None where it says nothing."""

    nbytes: int
    etag: str | None


class ShardFile(Protocol):
    """One file. Both calls raise NotFound and DataUnreachable."""

    def version(self) -> Version: ...

    def read(self, start: int, end: int, version: Version) -> bytes:
        """The bytes [start, end) of that version. Raises Corrupt where the file is another one by now."""


def open_file(url: str, storage: Mapping[str, str]) -> ShardFile:
    """storage: options of the object store, as obstore takes them. Raises InvalidSpec for a scheme it doesn't know."""
    local = local_path(url)
    if local is not None:
        return LocalFile(local)
    if urlsplit(url).scheme in ("http", "https"):
        return HttpFile(url)
    return StoredFile(url, storage)


def local_path(url: str) -> Path | None:
    """The path of a local file; None where the URL names something elsewhere."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if "://" in url else Path(url)


class LocalFile:
    """version: without an etag, since copies on other nodes have other times."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def version(self) -> Version:
        try:
            return Version(self._path.stat().st_size, None)
        except OSError as error:
            raise NotFound(
                f"there is no shard {self._path} on {os.uname().nodename} ({error.strerror}).",
                "Put it at the same path on every node, or give URLs that every node reaches.",
            ) from error

    def read(self, start: int, end: int, version: Version) -> bytes:
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)


@lru_cache(maxsize=1)
def _http() -> httpx.Client:
    return httpx.Client(follow_redirects=True, timeout=TIMEOUT_S)


class HttpFile:
    """A file of a web server that serves ranges. Its etag is the server's, or else the time of its last change."""

    def __init__(self, url: str) -> None:
        self._url = url

    def version(self) -> Version:
        return _version_of(self._get(0, 1))

    def read(self, start: int, end: int, version: Version) -> bytes:
        def once() -> bytes:
            response = self._ask(start, end)
            if _version_of(response) != version:
                raise changed(self._url)
            if len(response.content) != end - start:
                raise httpx.RemoteProtocolError(f"{len(response.content)} bytes instead of {end - start}")
            return response.content

        return retried(once, httpx.TransportError, self._url)

    def _get(self, start: int, end: int) -> httpx.Response:
        return retried(lambda: self._ask(start, end), httpx.TransportError, self._url)

    def _ask(self, start: int, end: int) -> httpx.Response:
        with _http().stream("GET", self._url, headers={"Range": f"bytes={start}-{end - 1}"}) as response:
            if response.status_code == 200:  # the whole file would follow
                raise InvalidSpec(
                    f"{response.url.host} does not serve ranges of {self._url}.",
                    "Use a server that does (nginx, an object store, most of them), or copy the files to the nodes.",
                )
            if response.status_code >= 500 or response.status_code == 429:
                raise httpx.RemoteProtocolError(f"the server answered {response.status_code}")
            if response.status_code != 206:
                raise absent(self._url, f"the server answered {response.status_code}")
            response.read()
            return response


def _version_of(response: httpx.Response) -> Version:
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    if not total.isdigit():
        raise httpx.RemoteProtocolError("the server does not say how long the file is")
    return Version(int(total), response.headers.get("ETag") or response.headers.get("Last-Modified"))


class StoredFile:
    """An object of S3, Google Cloud Storage or Azure, by obstore. Credentials are the node's own."""

    def __init__(self, url: str, storage: Mapping[str, str]) -> None:
        folder, _, self._name = url.rpartition("/")
        self._url = url
        self._store = _store(folder, tuple(sorted(storage.items())))

    def version(self) -> Version:
        import obstore

        found = self._asked(lambda: obstore.head(self._store, self._name))
        return Version(found["size"], found["e_tag"])

    def read(self, start: int, end: int, version: Version) -> bytes:
        import obstore

        options: Any = {"range": (start, end), "if_match": version.etag}
        return self._asked(lambda: bytes(obstore.get(self._store, self._name, options=options).bytes()))

    def _asked(self, ask: Callable[[], Result]) -> Result:
        from obstore import exceptions

        try:
            return retried(ask, exceptions.GenericError, self._url)
        except exceptions.PreconditionError as error:
            raise changed(self._url) from error
        except (exceptions.BaseError, OSError) as error:  # a missing object is a FileNotFoundError
            raise absent(self._url, str(error).splitlines()[0]) from error


@lru_cache(maxsize=64)
def _store(folder: str, options: tuple[tuple[str, str], ...]) -> Any:
    try:
        from obstore import exceptions, store
    except ImportError:
        raise InvalidSpec(
            f"{folder} is in an object store, and obstore is not installed.",
            "Run `pip install 'paceline[data]'` here and on the nodes.",
        ) from None
    try:
        return store.from_url(
            folder,
            client_options={"allow_http": dict(options).get("endpoint", "").startswith("http://")},
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=TIMEOUT_S)},
            **dict(options),
        )
    except exceptions.BaseError as error:
        raise InvalidSpec(
            f"{folder} can't be opened: {str(error).splitlines()[0]}.",
            "Give local paths, or http(s)://, s3://, gs:// or az:// URLs, and the store's options as storage=.",
        ) from error


def retried(ask: Callable[[], Result], passing: type[Exception], url: str) -> Result:
    """Ask again after a passing error, ATTEMPTS times in all. Raises DataUnreachable with the last one."""
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except passing as error:
            if attempt == ATTEMPTS - 1:
                raise DataUnreachable(
                    f"{url} can't be read after {ATTEMPTS} attempts ({type(error).__name__}: {error}).",
                    "Check that every node reaches it.",
                ) from error
            time.sleep(0.1 * 4**attempt)
    raise AssertionError("unreachable")


def absent(url: str, answer: str) -> PacelineError:
    return NotFound(f"{url} can't be read: {answer}.", "Check the name, and the credentials of client and nodes.")


def changed(url: str) -> Corrupt:
    return Corrupt(
        f"{url} is not the file that was indexed: its size or etag differs.",
        "Submit the job again; while it trains, leave its files as they are.",
    )


class RangedFile(io.RawIOBase):
    """A shard as a readable, seekable file, of which little more than what is read is fetched.

    The fetched pieces double in size for as long as one is read on from the last, as headers of small files are.
    """

    def __init__(self, file: ShardFile, version: Version) -> None:
        self._file, self._version = file, version
        self._at = 0
        self._start, self._piece = 0, b""
        self._ahead = LEAST_READ_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._version.nbytes}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self._at >= self._version.nbytes:
            return 0
        if not self._start <= self._at < self._start + len(self._piece):
            self._fetch(len(view))
        first = self._at - self._start
        data = self._piece[first : first + len(view)]
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _fetch(self, wanted: int) -> None:
        goes_on = self._piece and 0 <= self._at - self._start - len(self._piece) < len(self._piece)
        self._ahead = min(2 * self._ahead, MOST_READ_BYTES) if goes_on else LEAST_READ_BYTES
        end = min(self._at + max(wanted, self._ahead), self._version.nbytes)
        self._start, self._piece = self._at, self._file.read(self._at, end, self._version)


def buffered(file: ShardFile, version: Version) -> io.BufferedReader:
    return io.BufferedReader(RangedFile(file, version))
