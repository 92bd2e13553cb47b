"""A proxy in front of an HTTP server that spoils chosen requests.

    with Chaos("http://127.0.0.1:9000") as chaos:
        chaos.on(reset, "GET", r"\\.jpg$", times=2)
        ... requests to chaos.endpoint ...
        assert chaos.injected == 2

The Host header goes on as the client signed it. Connections to the client are kept alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

HEAD_LIMIT = 2**20


class Exchange:
    """A request that arrived completely, and the ways to answer it."""

    def __init__(
        self,
        upstream: tuple[str, int],
        client: asyncio.StreamWriter,
        head: bytes,
        body: bytes,
    ) -> None:
        self._upstream = upstream
        self.client = client
        self.head = head
        self.body = body
        self.method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
        self.path = unquote(target)

    async def forward(self) -> tuple[bytes, bytes]:
        """Asks the server, and gives the head of its answer and the body as it was sent.

        The head is made fit for a connection that is kept open. A busy server that hangs up on a
        read is asked again, so that there are no faults but those that are injected.
        """
        answer = b""
        if self.method in ("GET", "HEAD"):
            with contextlib.suppress(ConnectionError):
                answer = await self._ask()
        answer = answer or await self._ask()
        head, _, body = answer.partition(b"\r\n\r\n")
        lines = [
            line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")
        ]
        return b"\r\n".join([*lines, b"", b""]), body

    async def _ask(self) -> bytes:
        reader, writer = await asyncio.open_connection(*self._upstream)
        try:
            kept = [
                line
                for line in self.head.removesuffix(b"\r\n\r\n").split(b"\r\n")
                if not line.lower().startswith((b"expect:", b"connection:"))
            ]
            writer.write(b"\r\n".join([*kept, b"Connection: close", b"", b""]) + self.body)
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()

    async def deliver(self, answer: tuple[bytes, bytes]) -> None:
        self.client.write(b"".join(answer))
        await self.client.drain()

    def abort(self) -> None:
        """Resets the connection instead of closing it in good order."""
        sock = self.client.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.transport.abort()


Action = Callable[[Exchange], Awaitable[None]]


async def passed_on(exchange: Exchange) -> None:
    await exchange.deliver(await exchange.forward())


async def reset(exchange: Exchange) -> None:
    """Resets the connection; the server never sees the request."""
    exchange.abort()


async def answer_lost(exchange: Exchange) -> None:
    """Lets the server do what was asked, and drops its answer."""
    await exchange.forward()
    exchange.abort()


async def black_hole(exchange: Exchange) -> None:
    """Keeps the connection open and answers nothing."""
    await asyncio.sleep(3600)


def cut(after: int) -> Action:
    """Resets the connection after so many bytes of the body."""

    async def act(exchange: Exchange) -> None:
        head, body = await exchange.forward()
        await exchange.deliver((head, body[:after]))
        await asyncio.sleep(0.05)  # else the reset overtakes them
        exchange.abort()

    return act


def short(missing: int) -> Action:
    """Closes the connection in good order before the body is complete."""

    async def act(exchange: Exchange) -> None:
        head, body = await exchange.forward()
        await exchange.deliver((head, body[: max(0, len(body) - missing)]))
        exchange.client.close()

    return act


def trickle(bytes_per_second: float) -> Action:
    async def act(exchange: Exchange) -> None:
        head, body = await exchange.forward()
        await exchange.deliver((head, b""))
        for at in range(len(body)):
            await exchange.deliver((b"", body[at : at + 1]))
            await asyncio.sleep(1 / bytes_per_second)

    return act


def answers(status: int, code: str, message: str = "", headers: str = "") -> Action:
    """Answers with an error of S3 in XML; the server never sees the request."""

    async def act(exchange: Exchange) -> None:
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        if exchange.method == "HEAD":
            body = b""
        head = f"HTTP/1.1 {status} {code}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        await exchange.deliver((head.encode(), body))

    return act


def late(seconds: float) -> Action:
    async def act(exchange: Exchange) -> None:
        await asyncio.sleep(seconds)
        await passed_on(exchange)

    return act


def after(event: Callable[[], object]) -> Action:
    """Calls a function just before the server sees the request."""

    async def act(exchange: Exchange) -> None:
        await asyncio.to_thread(event)
        await passed_on(exchange)

    return act


@dataclass
class Rule:
    action: Action
    method: str
    path: str
    skip: int
    times: int | None
    by_chance: Callable[[], bool]
    seen: int = field(default=0, init=False)

    def takes(self, exchange: Exchange) -> bool:
        if not re.fullmatch(self.method, exchange.method):
            return False
        if not re.search(self.path, exchange.path) or not self.by_chance():
            return False
        self.seen += 1
        return self.seen > self.skip and (self.times is None or self.seen <= self.skip + self.times)

    @property
    def struck(self) -> int:
        """How many requests were spoiled."""
        struck = max(0, self.seen - self.skip)
        return struck if self.times is None else min(struck, self.times)


class Chaos:
    def __init__(self, upstream: str) -> None:
        address = urlsplit(upstream)
        assert address.hostname is not None
        assert address.port is not None
        self._upstream = (address.hostname, address.port)
        self._rules: list[Rule] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.random = random.Random(0)
        self.requests = 0
        self.injected = 0
        self.endpoint = ""

    def on(
        self,
        action: Action,
        method: str,
        path: str,
        *,
        skip: int = 0,
        times: int | None = 1,
        share: float = 1.0,
    ) -> Rule:
        """Spoils requests of this method whose path or query matches the pattern.

        Only a `share` of them is chosen, by chance. Of those the first `skip` pass, and the next
        `times` are spoiled (all of them if None). The first rule that fits a request is applied.

        Returns:
            The rule, which tells how many requests it has spoiled.
        """
        rule = Rule(action, method, path, skip, times, lambda: self.random.random() < share)
        self._rules.append(rule)
        return rule

    def calm(self, seed: int = 0) -> None:
        """Removes all rules, and starts the counters and the random numbers again."""
        self._rules.clear()
        self.injected = self.requests = 0
        self.random.seed(seed)

    def __enter__(self) -> Chaos:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=HEAD_LIMIT)
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._open.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while not writer.is_closing():
                    exchange = await self._request(reader, writer)
                    rule = next((rule for rule in self._rules if rule.takes(exchange)), None)
                    self.requests += 1
                    self.injected += rule is not None
                    await (rule.action if rule else passed_on)(exchange)
        finally:
            self._open.discard(task)
            writer.close()

    async def _request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Exchange:
        head = await reader.readuntil(b"\r\n\r\n")
        headers = dict(
            line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line
        )
        if b"expect" in headers:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert b"transfer-encoding" not in headers
        body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
        return Exchange(self._upstream, writer, head, body)
