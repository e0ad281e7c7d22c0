"""Usage: what a project consumed between two moments."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from skyrack.client.collection import Ref, id_of
from skyrack.client.connection import Connection
from skyrack.client.wire import to_record
from skyrack.v1 import quota_pb2 as pb


@dataclass(frozen=True)
class ServerUsage:
    server_id: str
    name: str
    hours: float
    vcpus: int
    memory_mib: int
    disk_gib: int
    cpu_s: float
    rx_bytes: int
    tx_bytes: int
    read_bytes: int
    write_bytes: int


@dataclass(frozen=True)
class Usage:
    project_id: str
    servers: tuple[ServerUsage, ...]
    server_hours: float
    vcpu_hours: float
    memory_mib_hours: float
    disk_gib_hours: float


class Usages:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, *, start: datetime.datetime, end: datetime.datetime, project: Ref | None = None) -> Usage:
        """Of `project` (None = the caller's) from `start` to `end`, both aware of their time zone."""
        since, until = Timestamp(), Timestamp()
        since.FromDatetime(start)
        until.FromDatetime(end)
        # "from" is a word of Python's own, so the fields can't be named in the call.
        request = pb.GetUsageRequest(project_id=id_of(project), to=until, **{"from": since})
        return to_record(Usage, await self._connection.call("QuotaService/GetUsage", request, pb.Usage))
