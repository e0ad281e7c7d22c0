"""Connections to the members of an etcd cluster: one is used at a time, and left for the next when it fails.

Each connection is made afresh (certificates are read again, no backoff of gRPC's is inherited). One that is left stays open
for the calls that are still under way on it: closing it under them would look to their callers like their own cancellation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from controllerd.leadership.etcd import etcd_pb2_grpc
from daemonkit.errors import ConfigError, Unavailable

# Members refuse pings more often than every 5 s (--grpc-keepalive-min-time), and any while no call is under way; what fails
# faster is seen by each call's deadline and by the probes of a watch.
OPTIONS: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),  # bounded by what the log's slots may hold and the caller's limit
]


@dataclass(frozen=True)
class TlsFiles:
    """`directory` holds ca.pem (who signs the members), client.pem and client.key."""

    directory: Path

    def credentials(self) -> grpc.ChannelCredentials:
        """Errors: ConfigError."""
        ca, key, certificate = (self._read(name) for name in ("ca.pem", "client.key", "client.pem"))
        return grpc.ssl_channel_credentials(ca, key, certificate)

    def _read(self, name: str) -> bytes:
        try:
            return (self.directory / name).read_bytes()
        except OSError as error:
            raise ConfigError(f"{self.directory / name}: {error.strerror}; it is needed to speak with etcd") from None


class Connection:
    """To the member at `endpoint` ("host:port"); plain when `tls` is None."""

    def __init__(self, endpoint: str, tls: TlsFiles | None) -> None:
        self.endpoint = endpoint
        self._channel = (
            grpc.aio.secure_channel(endpoint, tls.credentials(), options=OPTIONS)
            if tls
            else grpc.aio.insecure_channel(endpoint, options=OPTIONS)
        )
        self.kv = etcd_pb2_grpc.KVStub(self._channel)
        self.lease = etcd_pb2_grpc.LeaseStub(self._channel)
        self.watch = etcd_pb2_grpc.WatchStub(self._channel)
        self.cluster = etcd_pb2_grpc.ClusterStub(self._channel)
        self.maintenance = etcd_pb2_grpc.MaintenanceStub(self._channel)
        self._users = 0
        self._retired = False

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[Connection]:
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1
            await self._close_if_done()

    async def retire(self) -> None:
        """Nobody begins to use it any more; closes it now, or with the end of the last call on it."""
        self._retired = True
        await self._close_if_done()

    async def _close_if_done(self) -> None:
        if self._retired and not self._users:
            await self._channel.close()


class Members:
    def __init__(self, endpoints: Sequence[str], tls: TlsFiles | None) -> None:
        """Errors: ConfigError for no endpoint, or certificate files that are missing."""
        if not endpoints:
            raise ConfigError("cluster.etcd names no member")
        if tls is not None:
            tls.credentials()
        self.endpoints = tuple(endpoints)
        self._tls = tls
        self._at = 0
        self._current: Connection | None = None

    def current(self) -> Connection:
        """Errors: as `connect`."""
        if self._current is None:
            self._current = self.connect(self.endpoints[self._at])
        return self._current

    def connect(self, endpoint: str) -> Connection:
        """One more connection, which its caller retires. Errors: Unavailable while certificate files are being replaced."""
        try:
            return Connection(endpoint, self._tls)
        except ConfigError as error:
            raise Unavailable(error.message) from None

    async def leave(self, connection: Connection) -> None:
        """It failed: from now on the next member is used, unless another call has moved on already."""
        if connection is self._current:
            self._current = None
            self._at = (self._at + 1) % len(self.endpoints)
            await connection.retire()

    async def close(self) -> None:
        if self._current is not None:
            await self.leave(self._current)
