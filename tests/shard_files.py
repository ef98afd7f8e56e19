"""Shards for tests: the digits in files of each format, and servers of them."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from paceline.shards.folder import BoundedFolder

from helpers import wait_until
from workloads import digits

FORMATS = ("parquet", "arrow", "tar", "safetensors")
TARGETS = {"parquet": "label", "arrow": "label", "tar": "cls", "safetensors": "label"}


def write_shard(path: Path, pixels: np.ndarray, labels: np.ndarray, batch: int = 25) -> None:
    """pixels: shape (n, 64), float32. labels: shape (n,). batch: rows of a row group or record batch."""
    rows = table(pixels, labels)
    match path.suffix:
        case ".parquet":
            pq.write_table(rows, path, row_group_size=batch)
        case ".arrow":
            with pa.ipc.new_file(path, rows.schema) as writer:
                writer.write_table(rows, max_chunksize=batch)
        case ".safetensors":
            save_file({"pixels": np.ascontiguousarray(pixels), "label": np.ascontiguousarray(labels)}, path)
        case ".tar":
            _tar(path, pixels, labels)


def table(pixels: np.ndarray, labels: np.ndarray) -> pa.Table:
    return pa.table({"pixels": pa.FixedSizeListArray.from_arrays(pixels.ravel(), pixels.shape[1]), "label": labels})


def _tar(path: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    with tarfile.open(path, "w") as archive:
        for at, (row, label) in enumerate(zip(pixels, labels, strict=True)):
            file = io.BytesIO()
            np.save(file, row)
            for ending, data in (("cls", str(label).encode()), ("npy", file.getvalue())):
                member = tarfile.TarInfo(f"train/{at:06}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def digit_shards(folder: Path, ending: str, shards: int = 24) -> list[Path]:
    """The training digits in files of this format, of nearly equal lengths."""
    (x, y), _ = digits()
    paths = [folder / f"{at:03}.{ending}" for at in range(shards)]
    for path, pixels, labels in zip(paths, np.array_split(x, shards), np.array_split(y, shards), strict=True):
        write_shard(path, pixels, labels)
    return paths


class RangeHandler(SimpleHTTPRequestHandler):
    """Serves ranges, with an etag; breaks every `torn`-th answer off in its middle."""

    torn = 0
    ranges = True
    served: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        data = path.read_bytes()
        wanted = self.headers.get("Range")
        start, end = 0, len(data)
        if wanted and self.ranges:
            first, last = wanted.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last) + 1, len(data))
        self.send_response(206 if wanted and self.ranges else 200)
        self.send_header("ETag", f'"{hash(data)}"')
        self.send_header("Content-Length", str(end - start))
        if wanted and self.ranges:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.end_headers()
        self.served[""] += 1
        if self.torn and self.served[""] % self.torn == 0 and end - start > 1:
            self.wfile.write(data[start : (start + end) // 2])
            self.close_connection = True
            return None
        self.wfile.write(data[start:end])
        self.served[path.name] += end - start
        return None

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def web_server(folder: Path, *, torn: int = 0, ranges: bool = True) -> Iterator[tuple[str, Counter[str]]]:
    """(address, bytes served by file name) of a web server of the folder."""
    served: Counter[str] = Counter()
    handler = type("Handler", (RangeHandler,), {"torn": torn, "ranges": ranges, "served": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def object_store(folder: Path) -> Iterator[dict[str, str]]:
    """An S3 server with the folder's files in the bucket `shards`; the environment that clients of it need."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _answers(port))
        import boto3

        s3 = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        s3.create_bucket(Bucket="shards")
        for path in sorted(folder.iterdir()):
            s3.upload_file(str(path), "shards", f"digits/{path.name}")
        yield {**environment, "endpoint": f"http://127.0.0.1:{port}"}
    finally:
        server.terminate()
        server.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def size_of(folder: Path) -> int:
    """Bytes of the files in a bounded folder, at one moment: while none grows and none goes."""
    with BoundedFolder(folder, 0).alone(".room"):
        total = 0
        for entry in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):  # it just got its name
                total += entry.stat().st_size
        return total


def most_of(place: Path) -> int:
    """Bytes of the largest of a node's caches."""
    return max((size_of(path) for path in place.glob("*") if path.is_dir() and path.suffix != ".locks"), default=0)
