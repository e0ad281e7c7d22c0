"""The whole public API on 127.0.0.1 with a small cloud behind it, and raw calls to any method found by descriptor.

Only the store runs: tasks stand still unless a test moves the world, so that what a call changed can be told exactly.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from controllerd.agents.blob import Stored
from controllerd.config import ControllerConfig
from controllerd.controller import Controller
from controllerd.daemon import public_services
from controllerd.domain.quota import DEFAULTS
from controllerd.leadership.commit_log import LocalLog
from controllerd.store import quota
from controllerd.store.database import Tx
from controllerd.terms import Alone
from daemonkit import rpc
from daemonkit.runtime import Runtime
from tests.controllerd.identity.conftest import PASSWORD, bearer, people
from tests.controllerd.server.rig import Rig

PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43 + " tester"
TIMEOUT_S = 60
LET_IN_AFTER_S = 3  # a stream that was not refused by then


class BlobsInMemory:
    """Whatever is put is a disk of 64 MiB."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    async def put(self, address: str, format_: str, size_bytes_max: int, content: AsyncIterator[bytes | str]) -> Stored:
        data = b"".join([part async for part in content if isinstance(part, bytes)])
        sha256 = hashlib.sha256(data).hexdigest()
        self.content[sha256] = data
        return Stored(sha256, len(data), 64 << 20, hashlib.md5(data).hexdigest(), hashlib.sha512(data).hexdigest())

    async def get(self, address: str, sha256: str, offset: int) -> AsyncIterator[bytes]:
        yield self.content[sha256][offset:]


@dataclass(frozen=True)
class Answer:
    code: grpc.StatusCode
    message: str = ""
    reason: str = ""
    fields: tuple[str, ...] = ()  # that the BadRequest names
    sent: Message | None = None
    trailing: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.code is grpc.StatusCode.OK


@dataclass
class Api:
    controller: Controller
    channel: grpc.aio.Channel
    address: str
    services: list[str]
    tokens: dict[str, str]  # "admin", "alpha/member", "alpha/reader", "beta/member", ...
    world: Rig  # nodes that obey, when told to
    tables: list[str] = field(default_factory=list)
    ids: dict[str, str] = field(default_factory=dict)  # "server" -> alpha's server, "beta/server" -> beta's

    def methods(self) -> list[MethodDescriptor]:
        pool = descriptor_pool.Default()
        return [method for name in self.services for method in pool.FindServiceByName(name).methods]

    def method(self, name: str) -> MethodDescriptor:
        return next(m for m in self.methods() if m.name == name)

    async def call(self, name: str, who: str | None = "alpha/member", /, **fields: Any) -> Answer:
        method = self.method(name)
        return await self.send(method, message_factory.GetMessageClass(method.input_type)(**fields), who)

    async def make(self, name: str, who: str = "alpha/member", /, **fields: Any) -> Any:
        """The message that a call answered with; it must succeed."""
        answer = await self.call(name, who, **fields)
        assert answer.ok, answer
        return answer.sent

    async def send(
        self, method: MethodDescriptor, request: Message | bytes, who: str | None, metadata: Iterable[tuple[str, Any]] = ()
    ) -> Answer:
        """`request` as bytes goes out as it is."""
        given = (*bearer(self.tokens.get(who) if who else None), *metadata)
        path = f"/{method.containing_service.full_name}/{method.name}"
        parse = message_factory.GetMessageClass(method.output_type).FromString
        try:
            return await self._send(method, path, _bytes, parse, request, {"metadata": given, "timeout": TIMEOUT_S})
        except grpc.aio.AioRpcError as error:
            return _refusal(error)

    async def _send(
        self, method: MethodDescriptor, path: str, serialize: Any, parse: Any, request: Any, options: dict[str, Any]
    ) -> Answer:
        if method.client_streaming:
            sent = await self.channel.stream_unary(path, serialize, parse)(_once(request), **options)
        elif method.server_streaming:
            call = self.channel.unary_stream(path, serialize, parse)(request, **options)
            try:
                async with asyncio.timeout(LET_IN_AFTER_S):  # a watch that was let in says nothing
                    sent = await call.read()
            except TimeoutError:
                sent = None
            finally:
                call.cancel()
        else:
            sent = await self.channel.unary_unary(path, serialize, parse)(request, **options)
        return Answer(grpc.StatusCode.OK, sent=sent)

    async def rows(self) -> dict[str, int]:
        """Table -> number of rows."""
        counts = ", ".join(f"(SELECT count(*) FROM {table}) AS {table}" for table in self.tables)
        return await self.controller.database.read(lambda tx: tx.all(f"SELECT {counts}")[0])


def _bytes(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


async def _once(message: Any) -> AsyncIterator[Any]:
    yield message


def _refusal(error: grpc.aio.AioRpcError) -> Answer:
    status = rpc_status.from_call(error)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    fields: tuple[str, ...] = ()
    for detail in status.details if status else ():
        detail.Unpack(info)
        if detail.Unpack(bad):
            fields = tuple(violation.field for violation in bad.field_violations)
    return Answer(error.code(), error.details() or "", info.reason, fields, None, dict(error.trailing_metadata() or ()))


@asynccontextmanager
async def public_api(path: Path, runtime: Runtime) -> AsyncIterator[Api]:
    config = ControllerConfig(data_dir=path)
    controller = Controller(config, path / "state.db", LocalLog(), BlobsInMemory(), runtime, Alone(config, runtime))
    controller.authority.create()
    await controller.open()
    running = asyncio.create_task(controller.database.run())
    server = rpc.Server(runtime.new_id)
    services = public_services(controller)
    for add, servicer in services.values():
        add(servicer, server.grpc)
    address = f"127.0.0.1:{server.grpc.add_insecure_port('127.0.0.1:0')}"
    await server.start(list(services))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_end, controller, running)
        stack.push_async_callback(server.stop, 0)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=rpc.CLIENT_OPTIONS))
        hashed = await controller.passwords.hash(PASSWORD)
        tokens = await controller.database.write(lambda tx: people(tx, hashed))
        world = Rig(path, runtime, runtime.clock)
        world.database, world.cloud = controller.database, controller.cloud
        yield Api(controller, channel, address, list(services), tokens, world, await controller.database.read(_tables))


async def _end(controller: Controller, running: asyncio.Task[None]) -> None:
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await controller.close()


def _tables(tx: Tx) -> list[str]:
    return [
        row["name"]
        for row in tx.all("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE '\\_%' ESCAPE '\\'")
    ]


async def no_quotas(api: Api, *projects: str) -> None:
    def lift(tx: Tx) -> None:
        for project in projects:
            for resource in DEFAULTS:
                quota.set_limit(tx, f"id-{project}", resource, -1)

    await api.controller.database.write(lift)


async def furnish(api: Api) -> None:
    """What there is of everything: alpha's under its noun, beta's under "beta/noun"."""
    admin = "admin"
    flavor = await api.make("CreateFlavor", admin, name="m1", vcpus=1, memory_mib=512, disk_gib=1, public=True)
    await api.world.add_node("k1")
    out = await api.make("CreateNetwork", admin, name="out", external=True)
    await api.make("CreateSubnet", admin, network_id=out.id, cidr="10.200.0.0/16")
    common = {"external_network": out.id, "node": next(iter(api.world.nodes))}
    for project, prefix, number in (("beta", "beta/", 2), ("alpha", "", 1)):
        made = {"project": f"id-{project}", "user": f"id-{project}-member"} | common
        made |= await _networks(api, f"{project}/member", number, out.id)
        made |= await _machines(api, f"{project}/member", flavor.id, made["network"])
        api.ids |= {prefix + noun: found for noun, found in made.items()}


async def _networks(api: Api, who: str, number: int, out_id: str) -> dict[str, str]:
    network = await api.make("CreateNetwork", who, name="private")
    subnet = await api.make("CreateSubnet", who, network_id=network.id, cidr=f"10.{number}.0.0/16")
    router = await api.make("CreateRouter", who, name="edge", external_network_id=out_id)
    await api.make("AddRouterInterface", who, router_id=router.id, subnet_id=subnet.id)
    group = await api.make("CreateSecurityGroup", who, name="web")
    ingress = {"direction": 1, "protocol": "tcp", "port_min": 22, "port_max": 22}
    rule = await api.make("CreateSecurityGroupRule", who, security_group_id=group.id, **ingress)
    port = await api.make("CreatePort", who, network_id=network.id)
    floating_ip = await api.make("CreateFloatingIp", who, external_network_id=out_id)
    return {
        "network": network.id, "subnet": subnet.id, "router": router.id, "security_group": group.id, "rule": rule.id,
        "port": port.id, "floating_ip": floating_ip.id,
    }  # fmt: skip


async def _machines(api: Api, who: str, public_flavor: str, network_id: str) -> dict[str, str]:
    keypair = await api.make("CreateKeypair", who, name="key", public_key=PUBLIC_KEY)
    flavor = await api.make("CreateFlavor", who, name="own", vcpus=1, memory_mib=512, disk_gib=1)
    queued = await api.make("CreateImage", who, name="mini", format="raw")
    await api.controller.database.write(
        lambda tx: tx.run("UPDATE image SET state = 'ACTIVE', sha256 = ?, size_bytes = 4 WHERE id = ?", "a" * 64, queued.id)
    )
    image = queued.id
    server = await api.make("CreateServer", who, name="web", flavor_id=public_flavor, image_id=image,
                            networks=[{"network_id": network_id}], keypair_name="key")  # fmt: skip
    volume = await api.make("CreateVolume", who, name="data", size_gib=1)
    await api.world.run()
    return {
        "keypair": keypair.id, "flavor": flavor.id, "image": image, "server": server.id, "volume": volume.id,
        "task": server.task_id,
    }  # fmt: skip
