"""Errors, request ids and identities over a real gRPC server on 127.0.0.1 with TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from daemonkit import errors, rpc, tls
from daemonkit.desired import DesiredMismatch
from daemonkit.runtime import system_runtime
from daemonkit.transport import GrpcAgentStream, GrpcControllerStream, GrpcDialer
from skyrack.v1 import agent_pb2, agent_pb2_grpc
from tests.pki import Pki

ERRORS = [
    errors.InvalidArgument("size_gib", "must be positive"),
    errors.Unauthenticated("token is not valid"),
    errors.Forbidden("not yours"),
    errors.NotFound("server", "größe\n\x07"),
    errors.AlreadyExists("network", "n" * 100_000),
    errors.Conflict("in use", by="x"),
    errors.QuotaExceeded("servers", 10, 9, 2),
    errors.NoValidHost("no node fits", {"memory": 3, "message": 1, "self": 2}),
    errors.OutOfSpace("full"),
    errors.Unavailable("later"),
    errors.DeadlineExceeded("too long"),
    errors.NotLeader("127.0.0.1:7701", 9),
    errors.Fenced("old"),
]


class Service(agent_pb2_grpc.AgentServiceServicer):
    """Raises what it is told to, before or after its first answer; remembers who called."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.answers_first = False
        self.callers: list[tls.Identity] = []
        self.ended = asyncio.Event()

    async def Session(self, _messages: Any, context: Any) -> None:
        self.callers.append(tls.peer(context))
        stream = GrpcControllerStream(context)
        try:
            hello = await stream.receive()
            if self.error is not None and not self.answers_first:
                raise self.error
            await stream.send(agent_pb2.ControllerMessage(epoch=hello.hello.highest_epoch))
            if self.error is not None:
                raise self.error
            while True:
                await stream.receive()
        finally:
            self.ended.set()


@asynccontextmanager
async def served(pki: Pki, service: Service) -> AsyncIterator[str]:
    server = rpc.Server(system_runtime().new_id)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(service, server.grpc)
    files = tls.TlsFiles(pki.node("server", "controller"))
    port = server.bind("127.0.0.1:0", files.server(clients_must_show_certificate=True))
    await server.start(["skyrack.v1.AgentService"])
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0.1)


def hello(epoch: int = 1) -> agent_pb2.AgentMessage:
    return agent_pb2.AgentMessage(hello=agent_pb2.Hello(highest_epoch=epoch))


def dialer(pki: Pki) -> GrpcDialer:
    return GrpcDialer(tls.TlsFiles(pki.node("client", "compute", "gateway")))


@pytest.mark.parametrize("answers_first", [False, True])
async def test_every_error_arrives_as_itself(tmp_path: Path, answers_first: bool) -> None:
    pki, service = Pki(tmp_path), Service()
    service.answers_first = answers_first
    async with served(pki, service) as address:
        for error in ERRORS:
            service.error = error
            stream = await dialer(pki).dial(address)
            await stream.send(hello())
            if answers_first:
                assert (await stream.receive()).epoch == 1
            with pytest.raises(type(error)) as caught:
                await stream.receive()
            assert type(caught.value) is type(error)
            assert error.message.startswith(caught.value.message[:900])
            assert {k: v[:200] for k, v in error.metadata.items()} == caught.value.metadata
            with pytest.raises(type(error)):  # a late writer learns the same
                await stream.send(hello())
            await stream.close()
            if isinstance(error, errors.InvalidArgument) and isinstance(caught.value, errors.InvalidArgument):
                assert (caught.value.field, caught.value.why) == (error.field, error.why)
            if isinstance(error, errors.NotLeader) and isinstance(caught.value, errors.NotLeader):
                assert (caught.value.leader, caught.value.epoch) == (error.leader, error.epoch)
    assert {type(e) for e in ERRORS} <= set(rpc.CODES)
    assert service.callers[0].node == "client" and service.callers[0].roles == {"compute", "gateway"}


@pytest.mark.parametrize(
    "error",
    [
        ValueError("secret-path"),
        errors.CommandFailed(["qemu-img"], 1, "secret-path"),
        errors.ConfigError("secret-path"),
        DesiredMismatch("secret-path"),
    ],
)
async def test_what_callers_need_not_know_is_not_told(tmp_path: Path, error: Exception) -> None:
    pki, service = Pki(tmp_path), Service()
    service.error = error
    async with served(pki, service) as address, rpc.channel(address, tls.TlsFiles(pki.node("c", "edge")).client()) as channel:
        call = agent_pb2_grpc.AgentServiceStub(channel).Session(metadata=(("x-request-id", "my-id.1"),))
        await call.write(hello())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "secret-path" not in f"{caught.value!r}{caught.value.trailing_metadata()}" and "my-id.1" in str(
            caught.value.details()
        )
        assert ("x-request-id", "my-id.1") in tuple(caught.value.trailing_metadata())
        assert type(rpc.from_rpc_error(caught.value)) is errors.SkyrackError


async def test_request_ids_and_health_by_unary_and_stream(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    async with (
        served(pki, Service()) as address,
        rpc.channel(address, tls.TlsFiles(pki.node("c")).client()) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        for given, kept in (("abc-1", True), ("not good", False), ("x" * 65, False)):
            call = health.Check(health_pb2.HealthCheckRequest(), metadata=(("x-request-id", given),))
            assert (await call).status == health_pb2.HealthCheckResponse.SERVING
            trailing = dict(tuple(await call.trailing_metadata()))
            assert (trailing["x-request-id"] == given) is kept
        watch = health.Watch(health_pb2.HealthCheckRequest(service="skyrack.v1.AgentService"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        unknown = health.Check(health_pb2.HealthCheckRequest(service="none"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unknown
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert isinstance(rpc.from_rpc_error(caught.value), errors.Unavailable)  # no word of ours in it


async def test_strangers_are_not_served(tmp_path: Path) -> None:
    pki, other = Pki(tmp_path / "ours"), Pki(tmp_path / "other")
    service = Service()
    async with served(pki, service) as address:
        ca = (pki.node("client") / "ca.pem").read_bytes()
        stranger = other.node("client", "compute")
        key, certificate = (stranger / "node.key").read_bytes(), (stranger / "node.pem").read_bytes()
        for credentials in (
            grpc.ssl_channel_credentials(ca),
            grpc.ssl_channel_credentials(ca, key, certificate),
            tls.TlsFiles(stranger).client(),
        ):
            stream = GrpcAgentStream(rpc.channel(address, credentials))
            with pytest.raises(errors.Unavailable):
                await stream.send(hello())
                await stream.receive()
            await stream.close()
    assert service.callers == []


async def test_an_end_reaches_the_other_side(tmp_path: Path) -> None:
    pki, service = Pki(tmp_path), Service()
    async with served(pki, service) as address:
        stream = await dialer(pki).dial(address)
        await stream.send(hello())
        await stream.receive()
        await stream.close()
        async with asyncio.timeout(30):
            await service.ended.wait()
        second = await dialer(pki).dial(address)
        await second.send(hello())
        await second.receive()
    with pytest.raises(errors.Unavailable):
        await second.receive()
    with pytest.raises(errors.Unavailable):
        await second.send(hello())
    await second.close()
    third = await dialer(pki).dial(address)
    with pytest.raises(errors.Unavailable):
        await third.send(hello())
    await third.close()


async def test_calls_that_do_not_end_by_themselves_are_told_when_their_server_stops(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pki, service = Pki(tmp_path), Service()
    async with served(pki, service) as address:
        stream = await dialer(pki).dial(address)
        await stream.send(hello())
        await stream.receive()
    assert service.ended.is_set()
    with pytest.raises(errors.Unavailable, match="is stopping"):
        await stream.receive()
    await stream.close()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    async with served(pki, Service()) as address:
        second = rpc.Server(system_runtime().new_id)
        with pytest.raises(errors.ConfigError, match="cannot listen"):
            second.bind(address, tls.TlsFiles(pki.node("n")).server(clients_must_show_certificate=True))


async def test_certificates(tmp_path: Path) -> None:
    files = tls.TlsFiles(Pki(tmp_path).node("node-7", "storage"))
    assert files.identity().node == "node-7" and files.identity().roles == {"storage"}
    files.certificate.write_text("nonsense")
    with pytest.raises(errors.ConfigError):
        files.identity()
    with pytest.raises(errors.ConfigError, match="joined"):
        tls.TlsFiles(tmp_path / "none").client()
    loose = tmp_path / "secret.new"
    loose.write_text("left over")
    loose.chmod(0o644)
    tls.write_private(tmp_path / "secret", b"key")
    assert (tmp_path / "secret").read_bytes() == b"key" and (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
