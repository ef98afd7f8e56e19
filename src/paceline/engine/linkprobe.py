"""How far apart two nodes are: some ping-pongs, then one short burst each way, bounded in bytes and in time.

One agent listens for a moment on its node's address, another connects to it three times: to ping, to give a burst, to
take one. Whoever takes a burst ends it, by resetting the connection, so that nothing of it is left in queues that
training needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

PINGS, PING_S = 9, 0.5
PING_BYTES = 64
BURST_BYTES = 8 * 2**20
BURST_S = 0.3
# Left out: a token bucket lets its first bytes pass at another speed than all that follow, and TCP begins slowly.
LEAD_BYTES, LEAD_S = BURST_BYTES // 4, 0.1
CHUNK_BYTES = 64 * 1024
CONNECT_WITHIN_S = 2.0
PROBE_WITHIN_S = 6.0
LISTEN_S = 8.0  # the master's word to the other agent takes a while to arrive
REQUEST_BYTES = 128
NO_LINGER = struct.pack("ii", 1, 0)


class Found(NamedTuple):
    """latency_s: one way, half of a round trip. bytes_per_s: of the slower direction."""

    latency_s: float
    bytes_per_s: float


class Listener:
    """Answers the one who knows the secret. A context manager."""

    def __init__(self, address: str, secret: str) -> None:
        self._secret = secret
        self._socket = socket.create_server((address, 0))
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    async def serve(self) -> None:
        """Return when pings and both bursts were answered, or after LISTEN_S."""
        left = {"ping", "give", "take"}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LISTEN_S):
                while left:
                    connection, _ = await asyncio.get_running_loop().sock_accept(self._socket)
                    with _prompt(connection):
                        left.discard(await self._answer(connection))

    async def _answer(self, peer: socket.socket) -> str:
        """What it asked for, and got; empty where it does not know the secret. It hangs up by a reset."""
        wish = ""
        with contextlib.suppress(ConnectionError):
            secret, _, asked = (await _line(peer)).partition(" ")
            if not secrets.compare_digest(secret.encode(), self._secret.encode()):
                return ""
            wish = asked
            if wish == "ping":
                await _echo(peer)
            elif wish == "give":
                await _say(peer, repr(await _take(peer)))
                await _until_closed(peer)
            elif wish == "take":
                await _give(peer)
                await _until_closed(peer)
        return wish


async def probe(host: str, port: int, secret: str) -> Found:
    """Measure the way to a listener. Raises OSError, with the reason, where it can't be reached."""
    try:
        async with asyncio.timeout(PROBE_WITHIN_S):
            return await _probe(host, port, secret)
    except TimeoutError as late:
        raise TimeoutError(str(late) or f"pings and bursts took longer than {PROBE_WITHIN_S:.0f} s") from None


async def _probe(host: str, port: int, secret: str) -> Found:
    with _prompt(await _connected(host, port)) as peer:
        await _say(peer, f"{secret} ping")
        latency_s = await _half_round_trip(peer)
    with _prompt(await _connected(host, port)) as peer:
        await _say(peer, f"{secret} give")
        giving = asyncio.create_task(_give(peer))
        try:
            there = float(await _line(peer))
        finally:
            giving.cancel()
            await asyncio.gather(giving, return_exceptions=True)
    with _prompt(await _connected(host, port)) as peer:
        await _say(peer, f"{secret} take")
        back = await _take(peer)
    return Found(latency_s, min(there, back))


async def _connected(host: str, port: int) -> socket.socket:
    peer = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    peer.setblocking(False)
    try:
        async with asyncio.timeout(CONNECT_WITHIN_S):
            await asyncio.get_running_loop().sock_connect(peer, (host, port))
    except OSError as error:  # a TimeoutError is one, and says nothing
        peer.close()
        reason = os.strerror(error.errno) if error.errno else f"no answer within {CONNECT_WITHIN_S:.0f} s"
        raise ConnectionError(f"{host}:{port}: {reason}") from error
    return peer


@contextlib.contextmanager
def _prompt(peer: socket.socket) -> Iterator[socket.socket]:
    """Sends small messages at once; closed by a reset, which drops what is still queued."""
    with peer:
        peer.setblocking(False)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        yield peer


async def _half_round_trip(peer: socket.socket) -> float:
    """Seconds; the least, since work on either end only adds to it. Of far ends, fewer are asked."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    trips: list[float] = []
    while len(trips) < PINGS and (len(trips) < 3 or loop.time() - began < PING_S):
        sent = loop.time()
        await loop.sock_sendall(peer, bytes(PING_BYTES))
        got = 0
        while got < PING_BYTES:
            got += len(await _received(peer, PING_BYTES - got))
        trips.append(loop.time() - sent)
    return min(trips) / 2


async def _echo(peer: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(peer, PING_BYTES):
        await loop.sock_sendall(peer, data)


async def _give(peer: socket.socket) -> None:
    """As much of a burst as the other end takes."""
    chunk = bytes(CHUNK_BYTES)
    for _ in range(BURST_BYTES // CHUNK_BYTES):
        await asyncio.get_running_loop().sock_sendall(peer, chunk)


async def _take(peer: socket.socket) -> float:
    """Bytes per second at which a burst arrives, once its beginning has."""
    loop = asyncio.get_running_loop()
    received = len(await _received(peer, CHUNK_BYTES))
    began = loop.time()
    arrivals = [(began, received)]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(began + BURST_S):
            while received < BURST_BYTES and loop.time() < began + BURST_S:
                received += len(await _received(peer, CHUNK_BYTES))
                arrivals.append((loop.time(), received))
    return rate(arrivals)


def rate(arrivals: list[tuple[float, int]]) -> float:
    """Bytes per second. arrivals: (when, bytes so far), in order; of a whole burst, one at least.

    Where nothing came after the lead, all that came counts over the whole burst's time: an upper bound.
    """
    began = arrivals[0][0]
    end, received = arrivals[-1]
    lead = next((a for a in arrivals if a[0] - began >= LEAD_S or a[1] >= LEAD_BYTES), arrivals[-1])
    if end <= lead[0]:
        return received / BURST_S
    return (received - lead[1]) / (end - lead[0])


async def _received(peer: socket.socket, most: int) -> bytes:
    """Raises ConnectionError where the other end has closed."""
    data = await asyncio.get_running_loop().sock_recv(peer, most)
    if not data:
        raise ConnectionResetError("the other end closed the connection")
    return data


async def _until_closed(peer: socket.socket) -> None:
    """What was sent must arrive before a reset follows it."""
    while await asyncio.get_running_loop().sock_recv(peer, CHUNK_BYTES):
        pass


async def _say(peer: socket.socket, text: str) -> None:
    await asyncio.get_running_loop().sock_sendall(peer, text.encode() + b"\n")


async def _line(peer: socket.socket) -> str:
    """The next line, without its end. Raises ConnectionError where there is none of a sensible length."""
    read = b""
    while len(read) < REQUEST_BYTES:
        byte = await _received(peer, 1)  # what follows the line is another's to read
        if byte == b"\n":
            return read.decode(errors="replace")
        read += byte
    raise ConnectionAbortedError(f"no line within {REQUEST_BYTES} bytes")
