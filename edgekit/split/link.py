"""A slow link in user space: a TCP proxy that lets bytes through at a rate and late.

Each direction is a token bucket, shared by all connections, and a line of half the round trip behind it. With r bytes
a second and a bucket that holds what the rate gives in time b, what is offered at time t leaves at

    free = max(free, t - b) + size / r,        at max(t, free),

and arrives rtt / 2 later. Not modelled: losses, the handshake of a new connection, TCP's slow start, the headers of
frames and segments, and a radio that others share. A real link is no better.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from edgekit.errors import BadInput

PIECE_BYTES = 1500
BUCKET_S = 0.002
"""About what a timer of the operating system may be late, so that the rate is kept on average."""
QUEUED = 64
UNITS = {"kbit": 1e3, "Mbit": 1e6, "Gbit": 1e9}


@dataclasses.dataclass(frozen=True)
class Link:
    """rtt_ms: of a byte there and back, without what the rate adds."""

    name: str
    up_bits_per_s: float
    down_bits_per_s: float
    rtt_ms: float


LINKS = {
    link.name: link
    for link in (
        Link("lora", 5.47e3, 5.47e3, 200.0),  # LoRa of spreading factor 7 in 125 kHz
        Link("1mbit", 1e6, 1e6, 20.0),
        Link("lte", 10e6, 30e6, 50.0),
        Link("10mbit", 10e6, 10e6, 20.0),
        Link("wifi", 50e6, 50e6, 4.0),
        Link("100mbit", 100e6, 100e6, 1.0),
    )
}


def link(text: str) -> Link:
    """A link by its name in LINKS, or by its rate and round trip, as in `2.5Mbit/40ms`.

    Raises:
        BadInput: it is neither.
    """
    if text in LINKS:
        return LINKS[text]
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|Mbit|Gbit)/(\d+(?:\.\d+)?)ms", text)
    rate = float(found[1]) * UNITS[found[2]] if found else 0.0
    if found is None or rate <= 0:
        raise BadInput(f"unknown link {text!r}; write one of {', '.join(LINKS)}, or RATE/RTT such as 2.5Mbit/40ms")
    return Link(text, rate, rate, float(found[3]))


class Bucket:
    """When bytes may leave, at a rate."""

    def __init__(self, bits_per_s: float) -> None:
        self._bytes_per_s, self._free_s = bits_per_s / 8, -float("inf")
        self.piece_bytes = max(PIECE_BYTES, int(self._bytes_per_s * BUCKET_S))

    def departure_s(self, now_s: float, size: int) -> float:
        """When `size` bytes that are offered now have left."""
        self._free_s = max(self._free_s, now_s - BUCKET_S) + size / self._bytes_per_s
        return max(now_s, self._free_s)


class _Direction:
    """One way of a link: its bucket, and how many bytes went through."""

    def __init__(self, bits_per_s: float, late_s: float) -> None:
        self._bucket, self._late_s, self.bytes = Bucket(bits_per_s), late_s, 0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass everything on, and its end."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED)
        arriving = asyncio.create_task(_arrive(line, writer))
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(self._bucket.piece_bytes):
                departure_s = self._bucket.departure_s(time.monotonic(), len(data))
                await asyncio.sleep(departure_s - time.monotonic())
                self.bytes += len(data)
                await line.put((departure_s + self._late_s, data))
        await line.put((0.0, b""))
        await arriving


async def _arrive(line: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
    """Write what arrives until the end; where nobody takes it any more, let it go by."""
    while True:
        arrival_s, data = await line.get()
        await asyncio.sleep(arrival_s - time.monotonic())
        with contextlib.suppress(OSError):
            writer.write(data)
            await writer.drain()
            if not data:
                writer.write_eof()  # the other direction may still have much to say
        if not data:
            return


class Shaped:
    """A link that is up. up_bytes, down_bytes: what went through it so far, HTTP's heads included."""

    def __init__(self, shape: Link, url: str) -> None:
        target = urlsplit(url)
        self._target = (target.hostname, target.port)
        self._up = _Direction(shape.up_bits_per_s, shape.rtt_ms / 2e3)
        self._down = _Direction(shape.down_bits_per_s, shape.rtt_ms / 2e3)
        self.url = ""

    @property
    def up_bytes(self) -> int:
        return self._up.bytes

    @property
    def down_bytes(self) -> int:
        return self._down.bytes

    async def serve(self, ready: threading.Event, over: asyncio.Event) -> None:
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await over.wait()
        server.close()  # and no more: connections that are kept alive end with the loop

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        with contextlib.suppress(asyncio.CancelledError):  # the link is taken down while clients keep it open
            await asyncio.gather(self._up.carry(reader, there_writer), self._down.carry(there_reader, writer))
        writer.close()
        there_writer.close()


@contextlib.contextmanager
def shaped(shape: Link, url: str) -> Iterator[Shaped]:
    """A link of that shape to the server at `url`, on a port of its own of this machine, while the block runs."""
    made, ready, over = Shaped(shape, url), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(made.serve(ready, over))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
