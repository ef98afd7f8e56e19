"""A TCP relay that makes a connection slow, or silent: delay, bandwidth, black hole, without help of the kernel."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType

CHUNK_BYTES = 16 * 1024
IN_FLIGHT_CHUNKS = 64
END = b""


class Relay:
    """Forwards connections made to `host`:`port` to the target, in a thread of its own. A context manager.

    delay_s: one way, added to each byte. mbit: of each connection, each way; None: no limit. Set them at any time.
    A black hole holds all bytes, and the ends of connections, until `restore`: as after a partition, nothing is lost
    that TCP would send again, and nothing is said.
    """

    def __init__(
        self, target: tuple[str, int], host: str = "127.0.0.1", delay_s: float = 0.0, mbit: float | None = None
    ) -> None:
        self.host, self.port = host, 0
        self.delay_s, self.mbit = delay_s, mbit
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._passing = asyncio.Event()
        self._passing.set()
        self._connections: set[asyncio.Task[None]] = set()

    def black_hole(self) -> None:
        self._loop.call_soon_threadsafe(self._passing.clear)

    def restore(self) -> None:
        self._loop.call_soon_threadsafe(self._passing.set)

    def __enter__(self) -> Relay:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._accepted, self.host, 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _close(self) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._relay(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end on both sides; where one side breaks, so does the other."""
        writers = [writer]
        try:
            onward_reader, onward_writer = await asyncio.open_connection(*self._target)
            writers.append(onward_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, onward_writer))
                both.create_task(self._pump(onward_reader, writer))
        except* OSError:
            pass  # one side broke in the act of passing; closing passes that on to the other
        finally:
            for end in writers:
                end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction. The queue holds what is under way."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT_CHUNKS)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._deliver(under_way, writer))
            line_free_at = 0.0
            while True:
                chunk = await _read(reader)
                line_free_at = max(line_free_at, self._loop.time()) + self._seconds_on_line(chunk)
                await under_way.put((line_free_at + self.delay_s, chunk))
                if chunk == END:
                    return

    def _seconds_on_line(self, chunk: bytes) -> float:
        return len(chunk) * 8 / (self.mbit * 1e6) if self.mbit else 0.0

    async def _deliver(self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while True:
            due, chunk = await under_way.get()
            await asyncio.sleep(due - self._loop.time())
            await self._passing.wait()
            if chunk == END:
                writer.write_eof()
                return
            writer.write(chunk)
            await writer.drain()


async def _read(reader: asyncio.StreamReader) -> bytes:
    """What came. A reset is an end like any other: it, too, must wait behind what is under way."""
    try:
        return await reader.read(CHUNK_BYTES)
    except OSError:
        return END
