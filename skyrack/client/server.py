"""Servers: virtual machines."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from skyrack.client.attachment import Attachment
from skyrack.client.collection import Collection, Ref, id_of, new_key
from skyrack.client.connection import Retry
from skyrack.client.fault import Fault
from skyrack.client.wire import enum_number, to_record
from skyrack.v1 import server_pb2 as pb


@dataclass(frozen=True)
class ServerAddress:
    network_id: str
    network_name: str
    port_id: str
    ip: str
    mac: str
    floating_ip: str


@dataclass(frozen=True)
class TimelineEntry:
    """A step of the last launch, with milliseconds since the create was accepted."""

    name: str
    time: datetime.datetime | None
    since_accepted_ms: int


@dataclass(frozen=True)
class ServerNetwork:
    """Where a new server gets a port: a new one on `network_id` (with `fixed_ip`, or any address), or an existing one."""

    network_id: str = ""
    port_id: str = ""
    fixed_ip: str = ""


@dataclass(frozen=True)
class Server:
    id: str
    name: str
    project_id: str
    state: str
    """BUILD, ACTIVE, STOPPED, STARTING, STOPPING, REBOOTING, DELETING, ERROR, UNKNOWN (its node is lost) or PAUSED."""
    flavor_id: str
    flavor_name: str
    vcpus: int
    memory_mib: int
    disk_gib: int
    image_id: str
    addresses: tuple[ServerAddress, ...]
    attachments: tuple[Attachment, ...]
    keypair_name: str
    metadata: Mapping[str, str]
    node: str
    """"" for all but admins."""
    fault: Fault | None
    task_id: str
    """Of the work in progress, "" = none."""
    created_at: datetime.datetime | None
    updated_at: datetime.datetime | None
    launched_at: datetime.datetime | None
    user_id: str
    timeline: tuple[TimelineEntry, ...]
    """Empty in lists, and so in what `find` gives for a name: `get` has it."""


class Servers(Collection[Server]):
    kind, service, record = "server", "ServerService", Server

    async def create(
        self,
        name: str,
        *,
        flavor: Ref,
        image: Ref,
        networks: Sequence[ServerNetwork] = (),
        security_groups: Sequence[Ref] = (),
        keypair: str = "",
        user_data: bytes = b"",
        metadata: Mapping[str, str] | None = None,
        volumes: Sequence[Ref] = (),
        config_drive: bool = False,
        different_node_than: Ref | None = None,
        node: str = "",
    ) -> Server:
        """Answers in state BUILD; `wait(server, "ACTIVE")` for the end of it.

        No `networks`: the project's only one; no `security_groups`: "default". `keypair` is a name. `user_data`: at most
        64 KiB. `node`: admins only. Errors: InvalidArgument, NotFound, QuotaExceeded.
        """
        request = pb.CreateServerRequest(
            name=name,
            flavor_id=id_of(flavor),
            image_id=id_of(image),
            networks=[pb.ServerNetwork(network_id=n.network_id, port_id=n.port_id, fixed_ip=n.fixed_ip) for n in networks],
            security_group_ids=[id_of(group) for group in security_groups],
            keypair_name=keypair,
            user_data=user_data,
            metadata=dict(metadata or {}),
            volume_ids=[id_of(volume) for volume in volumes],
            config_drive=config_drive,
            idempotency_key=new_key(),
            different_node_than=id_of(different_node_than),
            node=node,
        )
        return await self._one("CreateServer", request, pb.Server)

    async def get(self, ref: Ref) -> Server:
        return await self._one("GetServer", pb.GetServerRequest(server_id=id_of(ref)), pb.Server)

    def list(self, *, name: str = "", all_projects: bool = False, state: str = "") -> AsyncIterator[Server]:
        """`all_projects`: admins only. `state`: only those in it. Errors: KeyError for a state there is not."""
        number = enum_number(pb.ServerState.DESCRIPTOR, state) if state else 0
        request = pb.ListServersRequest(name=name, all_projects=all_projects, state=pb.ServerState.ValueType(number))
        return self._pages("ListServers", request, pb.ListServersResponse, "servers")

    async def update(self, ref: Ref, *, name: str | None = None, metadata: Mapping[str, str] | None = None) -> Server:
        """`metadata` given replaces it all; None leaves it."""
        request = pb.UpdateServerRequest(
            server_id=id_of(ref), name=name, metadata=dict(metadata or {}), replace_metadata=metadata is not None
        )
        return await self._one("UpdateServer", request, pb.Server)

    async def delete(self, ref: Ref) -> None:
        """In any state; `wait_gone` for the end of it. Volumes are detached and kept."""
        await self._delete("DeleteServer", pb.DeleteServerRequest(server_id=id_of(ref)), pb.Server)

    async def start(self, ref: Ref) -> Server:
        """Errors: Conflict unless STOPPED."""
        request = pb.StartServerRequest(server_id=id_of(ref))
        return await self._toward("StartServer", request, pb.Server, ref, lambda row: row.state in ("STARTING", "ACTIVE"))

    async def stop(self, ref: Ref) -> Server:
        """Power button, then power off. Errors: Conflict unless ACTIVE."""
        request = pb.StopServerRequest(server_id=id_of(ref))
        return await self._toward("StopServer", request, pb.Server, ref, lambda row: row.state in ("STOPPING", "STOPPED"))

    async def reboot(self, ref: Ref, *, hard: bool = False) -> Server:
        """Errors: Conflict unless ACTIVE."""
        request = pb.RebootServerRequest(server_id=id_of(ref), hard=hard)
        return await self._one("RebootServer", request, pb.Server, Retry.ONCE)

    async def console_log(self, ref: Ref, *, bytes_max: int = 0) -> bytes:
        """The end of the serial console's log, as the guest wrote it. 0 = 64 KiB; at most 1 MiB."""
        request = pb.GetConsoleLogRequest(server_id=id_of(ref), bytes_max=bytes_max)
        return (await self._call("GetConsoleLog", request, pb.ConsoleLog)).data

    async def add_volume(self, ref: Ref, volume: Ref) -> Attachment:
        """Answers in state ATTACHING; the volume's state tells the rest: `cloud.volumes.wait(volume, "IN_USE")`."""
        request = pb.AttachVolumeRequest(server_id=id_of(ref), volume_id=id_of(volume), idempotency_key=new_key())
        return to_record(Attachment, await self._call("AttachVolume", request, pb.Attachment))

    async def remove_volume(self, ref: Ref, volume: Ref) -> Attachment:
        """Answers in state DETACHING; the volume becomes AVAILABLE."""
        request = pb.DetachVolumeRequest(server_id=id_of(ref), volume_id=id_of(volume))
        return to_record(Attachment, await self._call("DetachVolume", request, pb.Attachment, Retry.ONCE))
