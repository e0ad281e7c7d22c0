"""The metadata service: HTTP/1.1 on 169.254.169.254 of each network, answered by this process.

The listening socket is made inside the network's DHCP namespace and belongs to it for ever; the rest is ordinary asyncio. Who
asks is (network, source address). Bounded: requests of 16 KiB, bodies refused, connections per network, time.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress

import h11

from networkd.drivers import netns
from networkd.drivers.base import Answer
from networkd.spec import name

log = logging.getLogger(__name__)

REQUEST_BYTES_MAX = 16 << 10
CONNECTIONS_MAX = 256  # per network
CONNECTIONS_PER_GUEST_MAX = 16
REQUESTS_MAX = 100  # per connection
IDLE_S = 10.0


class MetadataService:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._servers: dict[str, asyncio.Server] = {}
        self._open: dict[str, list[str]] = {}  # network id -> source addresses of its connections

    @property
    def listening(self) -> set[str]:
        return set(self._servers)

    async def listen(self, network_id: str, sock: socket.socket) -> None:
        await self.close(network_id)
        self._open[network_id] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(network_id, reader, writer)

        self._servers[network_id] = await asyncio.start_server(serve, sock=sock, limit=REQUEST_BYTES_MAX)

    async def close(self, network_id: str) -> None:
        server = self._servers.pop(network_id, None)
        if server is not None:
            server.close()

    async def _serve(self, network_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = str(writer.get_extra_info("peername")[0])
        connections = self._open[network_id]
        try:
            if len(connections) < CONNECTIONS_MAX and connections.count(source) < CONNECTIONS_PER_GUEST_MAX:
                connections.append(source)
                try:
                    await _converse(reader, writer, lambda path: self._answer(network_id, source, path))
                finally:
                    connections.remove(source)
        except (OSError, TimeoutError, h11.ProtocolError) as error:
            log.debug("metadata connection", extra={"source": source, "why": str(error)})
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def listening_socket(network_id: str) -> socket.socket:
    """Errors: OSError (the address is not there, or taken)."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((name.METADATA_IP, 80))
        sock.listen(CONNECTIONS_MAX)
        return sock

    return netns.inside(name.dhcp_namespace(network_id), make)


async def _converse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Callable[[str], tuple[str, bytes] | None]
) -> None:
    """One connection. Errors: TimeoutError, h11.ProtocolError, OSError."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES_MAX)
    for _ in range(REQUESTS_MAX):
        async with asyncio.timeout(IDLE_S):
            try:
                request = await _request(connection, reader)
            except h11.RemoteProtocolError as error:
                await _send(connection, writer, error.error_status_hint, "text/plain", b"", close=True)
                return
            if request is None:
                return
            await _reply(connection, writer, request, answer)
            if connection.our_state is h11.MUST_CLOSE:
                return
            connection.start_next_cycle()


async def _request(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """Reads one request to its end. None: the peer closed."""
    request: h11.Request | None = None
    body_bytes = 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(4096))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body_bytes += len(event.data)
            if body_bytes > REQUEST_BYTES_MAX:
                raise h11.RemoteProtocolError("body too large", error_status_hint=413)
        elif isinstance(event, h11.EndOfMessage):
            return request
        else:
            return None


async def _reply(
    connection: h11.Connection, writer: asyncio.StreamWriter, request: h11.Request,
    answer: Callable[[str], tuple[str, bytes] | None],
) -> None:  # fmt: skip
    if request.method not in (b"GET", b"HEAD"):
        await _send(connection, writer, 405, "text/plain", b"")
        return
    reply = answer(request.target.decode("ascii", errors="replace"))
    status, (kind, body) = (200, reply) if reply is not None else (404, ("text/plain", b"not found\n"))
    await _send(connection, writer, status, kind, body, head=request.method == b"HEAD")


async def _send(
    connection: h11.Connection, writer: asyncio.StreamWriter, status: int, kind: str, body: bytes, *,
    head: bool = False, close: bool = False,
) -> None:  # fmt: skip
    if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    headers = [("content-type", kind), ("content-length", str(len(body)))] + ([("connection", "close")] if close else [])
    data = connection.send(h11.Response(status_code=status, headers=headers)) or b""
    data += connection.send(h11.Data(data=b"" if head else body)) or b""
    data += connection.send(h11.EndOfMessage()) or b""
    writer.write(data)
    await writer.drain()
