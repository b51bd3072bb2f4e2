"""A client for measurements that needs little CPU time: `LightClient` streams chats over connections that it keeps.

The client reads the lines of a stream, notes the time of each line, and parses nothing. For anything else, use the
`openai` package.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any
from urllib.parse import urlsplit

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class LightClient:
    """Streams chats from one server."""

    def __init__(self, url: str) -> None:
        """`url`: where the server listens, such as `http://127.0.0.1:8000`."""
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None, url
        self._host, self._port = parts.hostname, parts.port
        self._idle: list[Connection] = []

    async def times(self, body: dict[str, Any]) -> list[float]:
        """When a chat was sent, and when each event with text came, in seconds of `perf_counter`.

        Raises:
            AssertionError: the server refuses the request, or the stream does not end as it should.
        """
        content = json.dumps({**body, "stream": True}).encode("ascii")
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        reader, writer = await self._connection()
        times = [time.perf_counter()]
        writer.write(head.encode("ascii") + content)
        status = await reader.readline()
        assert status.startswith(b"HTTP/1.1 200"), status + await reader.read(10_000)
        async for line in reader:
            # The lines between the events are the sizes of the chunks.
            if line.startswith(b"data: {") and b'"content":"' in line and b'"content":""' not in line:
                times.append(time.perf_counter())
            elif line.startswith(b"data: [DONE]"):
                break
        assert await reader.readuntil(b"\r\n0\r\n\r\n"), "the last chunk is empty"
        self._idle.append((reader, writer))
        return times

    async def _connection(self) -> Connection:
        """A free connection that the server has not closed."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
        return await asyncio.open_connection(self._host, self._port)

    async def close(self) -> None:
        """Close all connections."""
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()
        self._idle.clear()
