"""ServerService over a real gRPC connection on 127.0.0.1."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from controllerd.api.rpc.gate import Gate
from controllerd.api.rpc.server import ServerService
from controllerd.domain.policy import Caller
from daemonkit.errors import Conflict, Forbidden, InvalidArgument, NotFound, SkyrackError, Unauthenticated
from daemonkit.rpc import Guard, from_rpc_error
from skyrack.v1 import server_pb2 as pb
from skyrack.v1 import server_pb2_grpc
from tests.controllerd.server.rig import Rig


class Tokens:
    """A token is the name of its caller."""

    def __init__(self, *callers: Caller) -> None:
        self._callers = {c.project_name: c for c in callers}

    async def caller_of(self, token: str) -> Caller:
        if token not in self._callers:
            raise Unauthenticated("no such token")
        return self._callers[token]


class Client:
    def __init__(self, stub: server_pb2_grpc.ServerServiceStub) -> None:
        self._stub = stub

    async def __call__(self, method: str, token: str = "alpha", **fields: object):
        request_type = getattr(pb, f"{method}Request")
        try:
            metadata = (("authorization", f"Bearer {token}"),)
            return await getattr(self._stub, method)(request_type(**fields), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None


@pytest.fixture
async def client(rig: Rig, tenant: Caller, operator: Caller, stranger: Caller) -> AsyncIterator[Client]:
    server = grpc.aio.server(interceptors=[Guard(rig.runtime.new_id)])
    gate = Gate(Tokens(tenant, operator, stranger))
    server_pb2_grpc.add_ServerServiceServicer_to_server(ServerService(gate, rig.servers, rig.volumes), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Client(server_pb2_grpc.ServerServiceStub(channel))
    await server.stop(None)


async def test_a_life_by_rpc(rig: Rig, tenant: Caller, client: Client) -> None:
    flavor, image = await rig.equip(tenant)
    volume_id = await rig.add_volume(tenant)
    made = await client(
        "CreateServer", name="web", flavor_id=flavor.id, image_id=image.id, metadata={"a": "b"}, idempotency_key="k"
    )
    again = await client(
        "CreateServer", name="web", flavor_id=flavor.id, image_id=image.id, metadata={"a": "b"}, idempotency_key="k"
    )
    assert made == again and made.state == pb.SERVER_STATE_BUILD and made.task_id and made.addresses[0].ip == "10.1.0.3"
    rig.clock.forward(0.05)
    await rig.run()
    server = await client("GetServer", server_id=made.id)
    assert (server.state, server.task_id, server.node, server.HasField("fault")) == (pb.SERVER_STATE_ACTIVE, "", "", False)
    assert server.launched_at.ToSeconds() and len(server.timeline) == 7 and server.timeline[-1].since_accepted_ms >= 50
    assert (await client("GetServer", token="operators", server_id=made.id)).node in ("k1", "k2")

    attachment = await client("AttachVolume", server_id=made.id, volume_id=volume_id)
    assert (attachment.device, attachment.state) == ("/dev/vdb", pb.ATTACHMENT_STATE_ATTACHING)
    await rig.run()
    server = await client("GetServer", server_id=made.id)
    assert [a.state for a in server.attachments] == [pb.ATTACHMENT_STATE_ATTACHED]
    await client("DetachVolume", server_id=made.id, volume_id=volume_id)
    await rig.run()

    for method, state in (("StopServer", pb.SERVER_STATE_STOPPED), ("StartServer", pb.SERVER_STATE_ACTIVE)):
        await client(method, server_id=made.id)
        await rig.run()
        assert (await client("GetServer", server_id=made.id)).state == state
    await client("RebootServer", server_id=made.id, hard=True)
    await rig.run()
    assert (await client("GetConsoleLog", server_id=made.id)).data.endswith(b" 65536")
    changed = await client("UpdateServer", server_id=made.id, name="db", metadata={"c": "d"})
    assert (changed.name, dict(changed.metadata)) == ("db", {"a": "b"})
    changed = await client("UpdateServer", server_id=made.id, metadata={"c": "d"}, replace_metadata=True)
    assert dict(changed.metadata) == {"c": "d"}

    assert (await client("DeleteServer", server_id=made.id)).state == pb.SERVER_STATE_DELETING
    await rig.run()
    with pytest.raises(NotFound):
        await client("GetServer", server_id=made.id)
    assert await rig.leftovers() == {}


async def test_lists(rig: Rig, tenant: Caller, client: Client) -> None:
    flavor, image = await rig.equip(tenant)
    for number in range(5):
        rig.clock.forward(1.0)
        await client("CreateServer", name=f"s{number}", flavor_id=flavor.id, image_id=image.id)
    await rig.run()
    first = await client("ListServers", page_size=3)
    rest = await client("ListServers", page_size=3, page_token=first.next_page_token)
    assert [s.name for s in (*first.servers, *rest.servers)] == [f"s{n}" for n in range(5)] and not rest.next_page_token
    assert all(s.addresses and s.state == pb.SERVER_STATE_ACTIVE and not s.node for s in first.servers)
    assert [s.name for s in (await client("ListServers", name="s3")).servers] == ["s3"]
    assert not (await client("ListServers", state=pb.SERVER_STATE_ERROR)).servers
    assert not (await client("ListServers", token="beta")).servers
    assert len((await client("ListServers", token="operators", all_projects=True)).servers) == 5
    with pytest.raises(Forbidden):
        await client("ListServers", all_projects=True)
    with pytest.raises(InvalidArgument):
        await client("ListServers", page_token="junk")


async def test_errors_arrive_as_what_they_are(rig: Rig, tenant: Caller, client: Client) -> None:
    flavor, image = await rig.equip(tenant)
    made = await client("CreateServer", name="web", flavor_id=flavor.id, image_id=image.id)
    cases: list[tuple[str, dict[str, object], type[SkyrackError]]] = [
        ("CreateServer", {"name": "a\x00"}, NotFound),
        ("CreateServer", {"name": "a\x00", "flavor_id": flavor.id, "image_id": image.id}, InvalidArgument),
        ("StopServer", {"server_id": made.id}, Conflict),
        ("GetServer", {"server_id": "nothing"}, NotFound),
        ("ListServers", {"state": 99}, InvalidArgument),
        ("GetServer", {"server_id": made.id, "token": "beta"}, NotFound),
        ("GetServer", {"server_id": made.id, "token": "forged"}, Unauthenticated),
        ("CreateServer", {"name": "a", "flavor_id": flavor.id, "image_id": image.id, "node": "k1"}, Forbidden),
    ]
    for method, fields, error in cases:
        with pytest.raises(error):
            await client(method, **fields)


async def test_a_fault_is_told_with_its_details(rig: Rig, tenant: Caller, client: Client) -> None:
    flavor, image = await rig.equip(tenant, memory_mib=8192)
    made = await client("CreateServer", name="web", flavor_id=flavor.id, image_id=image.id)
    await rig.run()
    server = await client("GetServer", server_id=made.id)
    assert (server.state, server.fault.reason) == (pb.SERVER_STATE_ERROR, "NO_VALID_HOST")
    assert list(server.fault.details) == ["memory: 2 of 2 nodes; closest miss lacks 4096 MiB"]
    server = await client("GetServer", token="operators", server_id=made.id)
    assert list(server.fault.details) == ["memory: 2 of 2 nodes; closest miss k1 lacks 4096 MiB"]
