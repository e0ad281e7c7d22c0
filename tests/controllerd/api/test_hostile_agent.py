"""Nodes that lie: whatever one tells, it gets no further than what it holds, and no other node's session notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from controllerd.agents.intake import OBJECTS_MAX
from controllerd.api.rpc.agent import AgentService
from controllerd.domain.node import Node
from controllerd.domain.usage import COUNTER_MAX
from controllerd.store.database import Tx
from controllerd.store.node import NODES
from daemonkit import rpc
from daemonkit.errors import Fenced, Forbidden, InvalidArgument, SkyrackError
from daemonkit.memory import MemoryNetwork
from daemonkit.tls import Identity, TlsFiles
from daemonkit.transport import AgentStream
from skyrack.v1 import agent_pb2 as pb
from skyrack.v1 import agent_pb2_grpc
from tests.controllerd.api.rig import Api
from tests.pki import Pki

ADDRESS = "c1:7701"
ROLES = frozenset({"compute", "edge", "gateway", "storage"})
KINDS = {"computed": pb.AGENT_KIND_COMPUTED, "networkd": pb.AGENT_KIND_NETWORKD, "storaged": pb.AGENT_KIND_STORAGED}
HUGE = (1 << 64) - 1
LIMIT_S = 60


class Rack:
    """`good`: the node that holds alpha's things. `evil`: another one, with every role."""

    def __init__(self, api: Api, network: MemoryNetwork) -> None:
        self.api, self.network = api, network
        self.good, self.evil = "k1", "e1"

    async def dial(self, kind: str, node: str, identity: Identity | None = None, **hello: Any) -> AgentStream:
        stream = await self.network.dialer(identity or Identity(node, ROLES, 1)).dial(ADDRESS)
        await stream.send(pb.AgentMessage(hello=pb.Hello(kind=KINDS[kind], node=node, **hello)))
        return stream

    async def session(self, kind: str, node: str, **hello: Any) -> AgentStream:
        """After the welcome and the desired state."""
        stream = await self.dial(kind, node, **hello)
        for body in ("welcome", "desired"):
            assert (await stream.receive()).WhichOneof("body") == body
        return stream

    async def told(self, stream: AgentStream, seq: int = 1) -> None:
        """The session is alive: it answers."""
        await stream.send(pb.AgentMessage(report=pb.Report(seq=seq)))
        while (await stream.receive()).report_ack.seq != seq:
            continue

    async def all(self, sql: str) -> list[dict[str, Any]]:
        return await self.api.controller.database.read(lambda tx: tx.all(sql))


@pytest.fixture
async def rack(api: Api) -> AsyncIterator[Rack]:
    def insert(tx: Tx) -> None:
        NODES.insert(tx, Node("id-e1", "e1", tuple(sorted(ROLES)), True, "1", tx.now))
        NODES.update(tx, api.ids["node"], roles=tuple(sorted(ROLES)))

    sessions = api.controller.sessions
    await api.controller.database.write(insert)
    api.controller.database.subscribe(sessions.notice)
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(MemoryNetwork())
        network.listen(ADDRESS, sessions.serve)
        async with asyncio.timeout(LIMIT_S):
            yield Rack(api, network)


async def refused(stream: AgentStream, error: type[SkyrackError]) -> None:
    with pytest.raises(error):
        while True:
            await stream.receive()


async def test_who_is_not_let_in(rack: Rack) -> None:
    nobody = Identity("e1", frozenset(), 1)
    strangers = (nobody, Identity("k1", ROLES, 1), Identity("", ROLES, 1), Identity("e1", ROLES, 2),
                 Identity("e1", frozenset({"storage"}), 1), Identity("e1'; --", ROLES, 1))  # fmt: skip
    for identity in strangers:
        await refused(await rack.dial("computed", "e1", identity), Forbidden)
    for name in ("e1\x00", "E1", "", "x" * 100_000, "e1'; --"):
        await refused(await rack.dial("computed", name, Identity("e1", ROLES, 1)), Forbidden)


async def test_what_comes_before_hello(rack: Rack) -> None:
    bodies: list[pb.AgentMessage] = [
        pb.AgentMessage(), pb.AgentMessage(report=pb.Report(seq=1, whole=True)), pb.AgentMessage(heartbeat=pb.Heartbeat()),
        pb.AgentMessage(telemetry=pb.Telemetry(incarnation="i")), pb.AgentMessage(answer=pb.Answer(query_id="q")),
        pb.AgentMessage(hello=pb.Hello(node="e1")), pb.AgentMessage(hello=pb.Hello(node="e1", kind=99)),  # type: ignore[arg-type]
    ]  # fmt: skip
    before = await rack.api.rows()
    for body in bodies:
        stream = await rack.network.dialer(Identity("e1", ROLES, 1)).dial(ADDRESS)
        await stream.send(body)
        await refused(stream, InvalidArgument)
    assert await rack.api.rows() == before


async def test_hellos_without_measure(rack: Rack) -> None:
    storage, network = pb.StorageInventory, pb.NetworkInventory
    told: list[dict[str, Any]] = [
        {"version": "x" * 1000}, {"version": "a\nb"}, {"boot_id": "\x1b[31m"},
        {"inventory": pb.Inventory(address="x y:1")}, {"inventory": pb.Inventory(address="x" * 1000)},
        {"inventory": pb.Inventory(network=network(vtep="10.0.0.1; reboot"))},
        {"inventory": pb.Inventory(network=network(vtep="::1%x"))},
        {"inventory": pb.Inventory(storage=storage(nbd_host="<evil/>"))},
        {"inventory": pb.Inventory(compute=pb.ComputeInventory(images_cached=["a" * 64] * 40_000))},
    ]  # fmt: skip
    for hello in told:
        await refused(await rack.dial("networkd", "e1", **hello), InvalidArgument)
        stream = await rack.session("networkd", "e1")
        if "inventory" in hello:
            await stream.send(pb.AgentMessage(heartbeat=pb.Heartbeat(inventory=hello["inventory"])))
            await refused(stream, InvalidArgument)
    await refused(await rack.dial("networkd", "e1", highest_epoch=HUGE), Fenced)


async def test_an_inventory_of_wonders(rack: Rack) -> None:
    """The largest numbers there are: everything that looks at them goes on."""
    await rack.session("storaged", "k1")
    compute = pb.ComputeInventory(vcpus=(1 << 32) - 1, memory_mib=HUGE, disk_gib=HUGE)
    storage = pb.StorageInventory(volumes_total_gib=HUGE, volumes_free_gib=HUGE, images_free_bytes=HUGE, nbd_port=(1 << 32) - 1)
    for kind, part in (("computed", {"compute": compute}), ("storaged", {"storage": storage, "address": "h:1"})):
        await rack.session(kind, "e1", inventory=pb.Inventory(**part))  # type: ignore[arg-type]
    for name in ("ListNodes", "GetNode"):
        assert (await rack.api.call(name, "admin", **({"node_id": "e1"} if name == "GetNode" else {}))).ok
    server = {"flavor_id": rack.api.ids["flavor"], "image_id": rack.api.ids["image"]}
    await rack.api.make("CreateServer", name="x", networks=[{"network_id": rack.api.ids["network"]}], **server)
    await rack.api.make("CreateVolume", name="x", size_gib=1)
    await rack.api.world.advance()
    assert not await rack.all("SELECT * FROM task WHERE state IN ('FAILED', 'UNWINDING')")


def lies(rack: Rack) -> dict[str, list[pb.ObservedObject]]:
    """Of things that another node holds, and of nobody's."""
    ids, gone, failed = rack.api.ids, pb.OBSERVED_STATE_GONE, pb.OBSERVED_STATE_FAILED
    time = pb.Milestone(name="running")
    time.time.seconds = (1 << 63) - 1
    objects: dict[str, list[pb.ObservedObject]] = {"computed": [], "networkd": [], "storaged": []}
    for item in (ids["server"], ids["beta/server"], ids["port"], "", "x", "'; --", "x" * 5000):
        for state in (gone, failed, 99):
            observed = pb.ObservedServer(state=state, fault="lies", milestones=[time], attached=["x" * 100] * 1000)  # type: ignore[arg-type]
            objects["computed"].append(pb.ObservedObject(id=item, server=observed))
    for item in (ids["port"], ids["router"], ids["beta/port"], "x"):
        objects["networkd"].append(pb.ObservedObject(id=item, port=pb.ObservedPort(state=failed, fault="lies")))
        router = pb.ObservedRouter(state=failed, fault="lies", floating_ips=["1.2.3.4"] * 10_000)
        objects["networkd"].append(pb.ObservedObject(id=item, router=router))
    for item in (ids["volume"], ids["beta/volume"], "x"):
        objects["storaged"].append(pb.ObservedObject(id=item, volume=pb.ObservedVolume(state=gone)))
        objects["storaged"].append(pb.ObservedObject(id=item, export=pb.ObservedExport(state=failed)))
        objects["storaged"].append(pb.ObservedObject(id=item, blob=pb.ObservedBlob(state=pb.OBSERVED_STATE_READY)))
    absurd = pb.ObservedBlob(state=pb.OBSERVED_STATE_READY, size_bytes=HUGE)
    objects["storaged"].append(pb.ObservedObject(id="b" * 64, blob=absurd))
    return objects


async def test_lies_about_others_change_nothing(rack: Rack) -> None:
    tables = [t for t in rack.api.tables if t not in ("agent", "event", "telemetry_cursor")]
    streams = {kind: await rack.session(kind, "e1") for kind in KINDS}
    honest = await rack.session("computed", "k1")
    before = {table: await rack.all(f"SELECT * FROM {table}") for table in tables}
    for objects in lies(rack).values():
        for stream in streams.values():  # by the right agent, and by the wrong ones
            await stream.send(
                pb.AgentMessage(report=pb.Report(seq=7, whole=True, objects=[*objects, pb.ObservedObject(id="?")]))
            )
            await rack.told(stream, seq=8)
    for table in tables:
        assert await rack.all(f"SELECT * FROM {table}") == before[table], table
    await rack.told(honest)


async def test_its_own_server_with_absurd_news(rack: Rack) -> None:
    """What cannot be believed is passed over; what is kept is kept short."""
    stream, server_id = await rack.session("computed", "k1"), rack.api.ids["server"]
    strange = [pb.Milestone(name="x" * 1000) for _ in range(1000)]
    news = pb.ObservedServer(state=pb.OBSERVED_STATE_RUNNING, fault="x" * 100_000, attached=["y"] * 10_000, milestones=strange)
    await stream.send(pb.AgentMessage(report=pb.Report(seq=1, objects=[pb.ObservedObject(id=server_id, server=news)])))
    await rack.told(stream, seq=2)
    row = (await rack.all(f"SELECT * FROM server WHERE id = '{server_id}'"))[0]
    assert len(row["observed_fault"]) == 1000 and len(row["observed_attached"]) < 1000 and row["observed_milestones"] == "{}"
    assert (await rack.api.call("GetServer", server_id=server_id)).ok


async def test_a_report_of_everything(rack: Rack, caplog: pytest.LogCaptureFixture) -> None:
    """The largest that is taken neither stops the others nor fills the log; a larger one ends its session."""
    honest, stream = await rack.session("storaged", "k1"), await rack.session("computed", "e1")
    many = [pb.ObservedObject(id=f"{n:036d}", server=pb.ObservedServer(state=99)) for n in range(OBJECTS_MAX)]  # type: ignore[arg-type]
    await stream.send(pb.AgentMessage(report=pb.Report(seq=1, objects=many)))
    await rack.told(stream, seq=2)
    assert sum("not understood" in record.message for record in caplog.records) == 1
    await stream.send(pb.AgentMessage(report=pb.Report(seq=3, objects=many * 5)))
    await refused(stream, InvalidArgument)
    await rack.told(honest)


async def test_telemetry_beyond_all_bounds(rack: Rack) -> None:
    stream, server_id = await rack.session("computed", "k1"), rack.api.ids["server"]
    counters = dict.fromkeys(("cpu_ns", "memory_kib", "rx_bytes", "tx_bytes", "read_bytes", "write_bytes"), HUGE)
    small = dict.fromkeys(counters, 1)
    samples = [
        pb.Sample(seq=seq, server_id=server_id, **values) for seq, values in enumerate((counters, small, counters, small), 1)
    ]
    for number, sample in enumerate(samples):
        sample.wall_time.seconds = ((1 << 63) - 1, -(1 << 63), -1, 0)[number]
    samples += [
        pb.Sample(seq=HUGE, server_id=server_id),
        pb.Sample(seq=1 << 63),
        pb.Sample(seq=0),
        pb.Sample(seq=5, server_id="x" * 9999),
    ]
    for _twice in range(2):
        await stream.send(pb.AgentMessage(telemetry=pb.Telemetry(incarnation="i", samples=samples)))
        assert (await stream.receive()).telemetry_ack.seq == 5
    assert (await rack.all("SELECT cpu_ns FROM usage_counter"))[0]["cpu_ns"] == COUNTER_MAX
    usage = await rack.api.call("GetUsage")
    assert usage.ok, usage
    for incarnation in ("", "x" * 65):
        await stream.send(pb.AgentMessage(telemetry=pb.Telemetry(incarnation=incarnation, samples=samples)))
        await refused(stream, InvalidArgument)
        stream = await rack.session("computed", "k1")


async def test_results_and_answers_that_nobody_asked_for(rack: Rack) -> None:
    stream = await rack.session("computed", "e1")
    sent = [
        pb.AgentMessage(task_result=pb.TaskResult(task_id=rack.api.ids["task"], ok=True, fault="x" * 100_000)),
        pb.AgentMessage(task_result=pb.TaskResult(task_id="'; --")), pb.AgentMessage(answer=pb.Answer(query_id="x", ok=True)),
        pb.AgentMessage(resync=pb.Resync(why="x" * 100_000)), pb.AgentMessage(hello=pb.Hello(node="k1")), pb.AgentMessage(),
    ]  # fmt: skip
    before = await rack.api.rows()
    for message in sent:
        await stream.send(message)
    await rack.told(stream)
    assert await rack.api.rows() == before


async def test_a_console_log_longer_than_asked_for(rack: Rack) -> None:
    stream = await rack.session("computed", "k1")
    asking = asyncio.create_task(rack.api.call("GetConsoleLog", server_id=rack.api.ids["server"], bytes_max=10))
    query = (await stream.receive()).query
    await stream.send(pb.AgentMessage(answer=pb.Answer(query_id=query.query_id, ok=True, body=b"x" * 1000 + b"0123456789")))
    answer = await asking
    assert answer.sent is not None and answer.sent.data == b"0123456789"  # type: ignore[attr-defined]


async def test_garbage_over_the_wire(rack: Rack, tmp_path: Path) -> None:
    """Bytes that are no message, over real mutual TLS: the stream ends, the service does not."""
    pki = Pki(tmp_path / "pki")
    server = rpc.Server(rack.api.controller.cloud.runtime.new_id)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(AgentService(rack.api.controller.sessions), server.grpc)
    files = TlsFiles(pki.node("controller", "controller"))
    port = server.bind("127.0.0.1:0", files.server(clients_must_show_certificate=True))
    await server.start(["skyrack.v1.AgentService"])
    honest = await rack.session("computed", "k1")
    certified = TlsFiles(pki.node("e1", "compute")).client()
    try:
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", certified, rpc.CLIENT_OPTIONS) as channel:
            for data in (b"\xff", b"\x0a\x03\x12\x01\xff", b"\x0b" * 10_000, b""):
                call = channel.stream_stream("/skyrack.v1.AgentService/Session")(metadata=())
                await call.write(data)
                code = await call.code()
                assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT), code
    finally:
        await server.stop(0)
    await rack.told(honest)
