"""Blobs over HTTP: named by their sha256, sent and fetched in chunks, resumed where a connection broke."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import httpx

from paceline.digest import file_sha256
from paceline.errors import Corrupt, DiskFull, MasterUnreachable, PacelineError, ProtocolError, from_json

CHUNK_BYTES = 8 * 2**20  # of a request
PIECE_BYTES = 2**18  # held in memory, some times over, while it is sent
ATTEMPTS = 5
MISSING_AT_ONCE = 1000


class Bytes(Protocol):
    """Something of known length whose parts can be read: a memoryview, or a file's pages."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Any: ...


def raise_for(response: httpx.Response) -> httpx.Response:
    """The response, or the PacelineError that the master put into it."""
    if response.is_success:
        return response
    response.read()
    try:
        body = response.json()
    except ValueError:
        body = {}
    if isinstance(body, dict) and "code" in body:
        raise from_json(body)
    raise ProtocolError(
        f"the master answered {response.status_code} to {response.request.method} {response.request.url.path}.",
        "Check that the address is a Paceline master of this version.",
    )


def unreachable(url: httpx.URL | str, cause: Exception) -> MasterUnreachable:
    remedy = "Check the address, start one with `paceline up`, or use Client(local=True)."
    if "CERTIFICATE_VERIFY_FAILED" in str(cause):
        remedy = "Give the certificate to trust: ca=, or --ca, a copy of what the master's --tls-ca names."
    return MasterUnreachable(f"no master answers at {url} ({type(cause).__name__}: {cause}).", remedy)


class BlobStore:
    """The master's blobs, from outside. `http` carries the base address and the token.

    A broken connection is taken up again at the last byte that arrived, ATTEMPTS times without progress.
    """

    def __init__(self, http: httpx.Client, sleep: Callable[[float], None] = time.sleep) -> None:
        self._http = http
        self._sleep = sleep

    def missing(self, names: Iterable[str]) -> set[str]:
        """Those of the blobs that the master does not have yet."""
        wanted, found = list(dict.fromkeys(names)), set()
        for at in range(0, len(wanted), MISSING_AT_ONCE):
            asked = {"blobs": wanted[at : at + MISSING_AT_ONCE]}
            try:
                answer = raise_for(self._http.post("/api/v1/blobs/missing", json=asked)).json()
            except httpx.TransportError as error:
                raise unreachable(self._http.base_url, error) from error
            found |= set(answer["missing"])
        return found

    def upload(self, name: str, data: Bytes, arrived: Callable[[int], None] = lambda _: None) -> None:
        """Send a blob. name: its sha256. arrived: is told how many bytes more the master has, chunk by chunk.

        Raises Corrupt where the master got other bytes than the name says, and DiskFull where it has no room.
        """
        offset, failures = 0, 0
        while True:
            end = min(offset + CHUNK_BYTES, len(data))
            where, length = {"offset": offset, "total": len(data)}, {"Content-Length": str(end - offset)}
            pieces = (bytes(data[at : min(at + PIECE_BYTES, end)]) for at in range(offset, end, PIECE_BYTES))
            try:
                sent = self._http.put(f"/api/v1/blobs/{name}", params=where, headers=length, content=pieces)
                answer = raise_for(sent).json()
            except httpx.TransportError as error:
                failures = self._failed(failures, error)
                continue
            if answer["complete"]:
                return
            arrived(answer["received"] - offset)
            # where the master is: further than we think, where it got a chunk whose answer was lost
            offset, failures = answer["received"], 0

    def upload_file(self, path: Path, arrived: Callable[[int], None] = lambda _: None) -> str:
        """Send a file, as in `upload`; return the blob's name."""
        import mmap

        name = file_sha256(path)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            self.upload(name, mapped, arrived)
        return name

    def download(self, name: str, path: Path) -> None:
        """Fetch a blob to `path`, which appears only when it is whole and its sha256 is right."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        try:
            self._fetch(name, Path(part))
            _check(name, Path(part))
            os.replace(part, path)
        except OSError as error:
            raise disk_error(error, path) from error
        finally:
            Path(part).unlink(missing_ok=True)

    def _fetch(self, name: str, part: Path) -> None:
        failures = 0
        while True:
            before = part.stat().st_size
            try:
                return self._fetch_rest(name, part)
            except httpx.TransportError as error:
                failures = self._failed(0 if part.stat().st_size > before else failures, error)

    def _fetch_rest(self, name: str, part: Path) -> None:
        have = part.stat().st_size
        headers = {"Range": f"bytes={have}-"} if have else {}
        with self._http.stream("GET", f"/api/v1/blobs/{name}", headers=headers) as response:
            if response.status_code == 416:  # nothing is left to fetch
                return
            raise_for(response)
            with part.open("ab" if response.status_code == 206 else "wb") as file:
                for chunk in response.iter_bytes():  # as they come: what is gathered first is lost with the connection
                    file.write(chunk)

    def _failed(self, failures: int, error: httpx.TransportError) -> int:
        """Count a failure and pause. Raises MasterUnreachable at ATTEMPTS in a row without progress."""
        if failures + 1 >= ATTEMPTS:
            raise unreachable(self._http.base_url, error) from error
        self._sleep(0.2 * 2**failures)
        return failures + 1


def _check(name: str, path: Path) -> None:
    found = file_sha256(path)
    if found != name:
        raise Corrupt(
            f"the fetched blob has sha256 {found[:12]}…, not {name[:12]}…, in {path.stat().st_size} bytes.",
            "Fetch it again; if it stays so, the master's copy is damaged.",
        )


def disk_error(error: OSError, path: Path) -> PacelineError:
    """What the user should know of a failed write."""
    import errno
    import shutil

    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return PacelineError(f"cannot write {path}: {error.strerror}.", "Check the folder's permissions.")
    folder = next(parent for parent in path.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    return DiskFull(
        f"no room to write {path.name} in {folder}: {free:,} bytes are free.", "Free some space and try again."
    )


def sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()
