"""A term's services come and go under a running server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from controllerd.api.rpc.switch import Switch
from daemonkit import rpc
from daemonkit.errors import Fenced, NotLeader, SkyrackError
from skyrack.v1 import event_pb2, event_pb2_grpc, flavor_pb2, flavor_pb2_grpc, image_pb2, image_pb2_grpc
from tests.controllerd.front.rig import LIMIT_S, Rack

NAMES = ["skyrack.v1.FlavorService", "skyrack.v1.EventService", "skyrack.v1.ImageService"]


class Elsewhere(grpc.GenericRpcHandler):
    """Knows that it was asked."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def answer(_request: Any, _context: Any) -> None:
            raise NotLeader("elsewhere:1", 3)

        return grpc.stream_stream_rpc_method_handler(answer)


@dataclass
class Term(flavor_pb2_grpc.FlavorServiceServicer, event_pb2_grpc.EventServiceServicer, image_pb2_grpc.ImageServiceServicer):
    name: str
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def GetFlavor(self, request: flavor_pb2.GetFlavorRequest, context: Any) -> flavor_pb2.Flavor:
        return flavor_pb2.Flavor(name=self.name)

    async def CreateFlavor(self, request: flavor_pb2.CreateFlavorRequest, context: Any) -> flavor_pb2.Flavor:
        self.begun.release()
        await self.go_on.wait()
        return flavor_pb2.Flavor(name=self.name)

    async def DeleteFlavor(self, request: flavor_pb2.DeleteFlavorRequest, context: Any) -> Empty:
        raise Fenced("another leads")

    async def WatchEvents(self, request: event_pb2.WatchEventsRequest, context: Any) -> AsyncIterator[event_pb2.Event]:
        self.begun.release()
        while True:
            yield event_pb2.Event(message="x" * 100_000)

    async def UploadImage(self, request_iterator: AsyncIterator[Any], context: Any) -> image_pb2.Image:
        self.begun.release()
        size = 0
        async for request in request_iterator:
            size += len(request.chunk)
        return image_pb2.Image(size_bytes=size)

    def services(self) -> Any:
        return {
            NAMES[0]: (flavor_pb2_grpc.add_FlavorServiceServicer_to_server, self),
            NAMES[1]: (event_pb2_grpc.add_EventServiceServicer_to_server, self),
            NAMES[2]: (image_pb2_grpc.add_ImageServiceServicer_to_server, self),
        }


@dataclass
class Stage:
    switch: Switch
    channel: grpc.aio.Channel

    @property
    def flavors(self) -> Any:
        return flavor_pb2_grpc.FlavorServiceStub(self.channel)

    async def name(self) -> str:
        return str((await self.flavors.GetFlavor(flavor_pb2.GetFlavorRequest())).name)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    server, switch = rpc.Server(lambda: "rid"), Switch(NAMES, Elsewhere())
    server.grpc.add_generic_rpc_handlers((switch,))
    port = server.grpc.add_insecure_port("127.0.0.1:0")
    await server.start(NAMES)
    async with asyncio.timeout(LIMIT_S), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Stage(switch, channel)
    await server.stop(0)


def told(caught: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> SkyrackError:
    return rpc.from_rpc_error(caught.value)


async def test_each_call_is_resolved_when_it_comes(stage: Stage) -> None:
    for name in ("first", "second"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stage.name()
        assert told(caught).metadata == {"leader": "elsewhere:1", "epoch": "3"}
        async with stage.switch.establish(Term(name).services()):
            assert await stage.name() == name


async def test_what_no_service_has(stage: Stage) -> None:
    async with stage.switch.establish(Term("t").services()):
        for method in ("/skyrack.v1.FlavorService/Nothing", "/skyrack.v1.NoService/GetFlavor"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stage.channel.unary_unary(method)(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_call_in_flight_has_time_to_end(stage: Stage) -> None:
    term = Term("t")
    async with stage.switch.establish(term.services()):
        call = stage.flavors.CreateFlavor(flavor_pb2.CreateFlavorRequest())
        await term.begun.acquire()
        asyncio.get_running_loop().call_later(0.2, term.go_on.set)
    assert (await call).name == "t"


async def test_a_call_that_takes_longer_is_in_doubt(stage: Stage) -> None:
    term = Term("t")
    async with stage.switch.establish(term.services()):
        calls = [stage.flavors.CreateFlavor(flavor_pb2.CreateFlavorRequest()) for _ in range(20)]
        for _ in calls:
            await term.begun.acquire()
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert told(caught).reason == "UNAVAILABLE" and caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_streams_end_with_the_term_whatever_they_do(stage: Stage) -> None:
    """Some of the clients read, some do not: those are in the middle of a message for ever."""
    term = Term("t")
    async with stage.switch.establish(term.services()):
        stub: Any = event_pb2_grpc.EventServiceStub(stage.channel)
        calls = [stub.WatchEvents(event_pb2.WatchEventsRequest()) for _ in range(20)]
        reading = [asyncio.create_task(_read_all(call)) for call in calls[:10]]
        for _ in calls:
            await term.begun.acquire()
        await asyncio.sleep(0.2)
    for error in await asyncio.gather(*reading):
        assert rpc.from_rpc_error(error).reason == "UNAVAILABLE"
    for call in calls[10:]:
        assert rpc.from_rpc_error(await _read_all(call)).reason == "UNAVAILABLE"


async def _read_all(call: Any) -> grpc.aio.AioRpcError:
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the stream ended well")


async def test_an_upload_ends_with_the_term(stage: Stage) -> None:
    term = Term("t")
    async with stage.switch.establish(term.services()):
        call: Any = image_pb2_grpc.ImageServiceStub(stage.channel).UploadImage()
        await call.write(image_pb2.UploadImageRequest(chunk=b"x" * 100))
        await term.begun.acquire()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert told(caught).reason == "UNAVAILABLE"


async def test_a_fenced_write_is_in_doubt(stage: Stage) -> None:
    async with stage.switch.establish(Term("t").services()):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stage.flavors.DeleteFlavor(flavor_pb2.DeleteFlavorRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_health_and_reflection_name_all_services_all_the_time(pair: Rack) -> None:
    for name, leads in (("c1", True), ("c2", False)):
        for address, tls, inner in (
            (pair.nodes[name].api, None, set()),
            (pair.nodes[name].member.agents, pair.tls("n1", "storage"), {"skyrack.v1.AgentService", "skyrack.v1.PeerService"}),
        ):
            async with pair.channel(address, tls) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                for service in ("", "skyrack.v1.ServerService", *inner):
                    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
                    assert answer.status == health_pb2.HealthCheckResponse.SERVING
                answer = await stub.Check(health_pb2.HealthCheckRequest(service="skyrack.v1.Leader"))
                assert (answer.status == health_pb2.HealthCheckResponse.SERVING) is leads
                asked = reflection_pb2.ServerReflectionRequest(list_services="")
                call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]))
                listed = {service.name for service in (await call.read()).list_services_response.service}
                assert listed >= {"skyrack.v1.ServerService", "skyrack.v1.ImageService", *inner}
