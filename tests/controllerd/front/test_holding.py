"""How long calls are held and how many, and what is believed of a forwarded call."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from controllerd.peers.forward import ForwardSettings, _of_the_hop
from daemonkit import rpc
from daemonkit.errors import Unavailable
from daemonkit.runtime import Runtime
from skyrack.client import Patience, errors
from skyrack.v1 import identity_pb2, server_pb2
from tests.controllerd.front.rig import Rack, rack
from tests.controllerd.identity.conftest import bearer

LIST = "/skyrack.v1.ServerService/ListServers"
UPLOAD = "/skyrack.v1.ImageService/UploadImage"
LOGIN = "/skyrack.v1.IdentityService/CreateToken"


def nothing(size: int = 0) -> bytes:
    return server_pb2.ListServersRequest(name="x" * size).SerializeToString()


async def refusal(channel: grpc.aio.Channel, request: bytes) -> tuple[grpc.aio.AioRpcError, Unavailable]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(LIST)(request)
    told = rpc.from_rpc_error(caught.value)
    assert isinstance(told, Unavailable)
    return caught.value, told


async def test_held_for_a_bounded_time_and_told_when_to_come_again(tmp_path: Path, runtime: Runtime) -> None:
    async with rack(tmp_path, runtime, "c1", forward=ForwardSettings(hold_max_s=0.3)) as made:
        async with made.channel(made.nodes["c1"].api) as channel:
            raw, told = await refusal(channel, nothing())
    assert raw.code() is grpc.StatusCode.UNAVAILABLE
    assert told.reason == "NO_LEADER" and told.retry_s == 2.0
    assert raw.details() == "no controller leads now; try again in 2 s"


async def test_only_so_many_and_so_much_are_held(tmp_path: Path, runtime: Runtime) -> None:
    settings = ForwardSettings(hold_max_s=3.0, held_max=3, held_bytes_max=100_000)
    async with rack(tmp_path, runtime, "c1", forward=settings) as made:
        async with made.channel(made.nodes["c1"].api) as channel:
            held = [asyncio.create_task(refusal(channel, nothing(40_000))) for _ in range(2)]
            await asyncio.sleep(0.3)
            began_s = asyncio.get_running_loop().time()
            await refusal(channel, nothing(40_000))  # too much
            held.append(asyncio.create_task(refusal(channel, nothing())))
            await asyncio.sleep(0.1)
            await refusal(channel, nothing())  # too many
            assert asyncio.get_running_loop().time() - began_s < 2
            assert not any(task.done() for task in held)
            await asyncio.gather(*held)


async def test_requests_are_forwarded_only_up_to_so_many_bytes(tmp_path: Path, runtime: Runtime) -> None:
    """Whoever sends them; and there is room again when they are gone."""
    settings = ForwardSettings(hold_max_s=1.0, forwarded_bytes_max=100_000)
    async with rack(tmp_path, runtime, "c1", forward=settings) as made:
        async with made.channel(made.nodes["c1"].api) as channel:
            for _ in range(2):
                held = [asyncio.create_task(refusal(channel, nothing(40_000))) for _ in range(2)]
                await asyncio.sleep(0.3)
                _raw, told = await refusal(channel, nothing(40_000))
                assert told.reason == "UNAVAILABLE" and "as much as it may" in told.message
                assert not any(task.done() for task in held)
                assert [told.reason for _raw, told in await asyncio.gather(*held)] == ["NO_LEADER"] * 2


async def test_a_stream_that_there_is_no_room_for_is_ended(tmp_path: Path, runtime: Runtime) -> None:
    async with rack(tmp_path, runtime, "c1", "c2", forward=ForwardSettings(forwarded_bytes_max=1000)) as made:
        await made.elect("c1")
        async with made.channel(made.nodes["c2"].api) as channel:
            call = channel.stream_unary(UPLOAD)(iter([bytes(2000)]), metadata=bearer(made.tokens["alpha/member"]))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_what_belongs_to_one_hop() -> None:
    names = ["te", "tenant", "host", "hostess", "grpc-timeout", "user-agent", "x-request-id", "authorization"]
    assert [name for name in names if not _of_the_hop(name)] == ["tenant", "hostess", "authorization"]


async def test_a_leader_that_is_gone_but_still_named(pair: Rack) -> None:
    """Its lease has not ended yet: calls wait, they are not sent into the void."""
    gone = pair.nodes["c1"].member
    await pair.kill("c1")
    pair.election.tell(gone)
    async with pair.client(pair.nodes["c2"]) as cloud:
        listing = asyncio.create_task(_names(cloud))
        await asyncio.sleep(0.7)
        assert not listing.done()
        await pair.elect("c2")
        assert await listing == []


async def _names(cloud: object) -> list[str]:
    return [row.name async for row in cloud.networks.list()]  # type: ignore[attr-defined]


async def test_the_client_follows_the_advice(tmp_path: Path, runtime: Runtime) -> None:
    """Held too briefly by this controller, the call of a patient client lasts until somebody leads: even one that may not be
    sent twice."""
    async with rack(tmp_path, runtime, "c1", forward=ForwardSettings(hold_max_s=0.2)) as made:
        await made.elect("c1")
        async with made.client(made.nodes["c1"]) as cloud:
            await cloud.tokens.current()
            await made.resign("c1")
            rebooting = asyncio.create_task(cloud.servers.reboot("none"))
            await asyncio.sleep(1.0)
            assert not rebooting.done()
            await made.elect("c1")
            with pytest.raises(errors.NotFound):
                await rebooting


async def test_a_controller_that_cannot_reach_itself(tmp_path: Path, runtime: Runtime) -> None:
    """What it held before it led is sent back to come again, at once."""
    async with rack(tmp_path, runtime, "c1") as made:
        async with made.channel(made.nodes["c1"].api) as channel, made.client(made.nodes["c1"]) as cloud:
            raw = asyncio.create_task(refusal(channel, nothing()))
            patient = asyncio.create_task(_names(cloud))
            await asyncio.sleep(0.3)
            assert not raw.done() and not patient.done()
            await made.elect("c1", "0.0.0.0:1")
            assert (await raw)[1].retry_s == 0.05
            assert await patient == []


async def test_the_client_gives_up_in_the_end(tmp_path: Path, runtime: Runtime) -> None:
    async with rack(tmp_path, runtime, "c1", forward=ForwardSettings(hold_max_s=0.1)) as made:
        async with made.client(made.nodes["c1"], patience=Patience(first_s=1.0, total_s=1.0)) as cloud:
            with pytest.raises(errors.NoLeader) as caught:
                await cloud.tokens.current()
    assert caught.value.retry_s == 2.0


@pytest.mark.parametrize("controller", ["c1", "c2"])
async def test_logins_are_counted_for_the_address_they_came_from(pair: Rack, controller: str) -> None:
    request = identity_pb2.CreateTokenRequest(user="alpha-member", password="wrong").SerializeToString()
    async with pair.channel(pair.nodes[controller].api) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(LOGIN)(request, metadata=(("x-skyrack-origin", "ipv4:203.0.113.9"),))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    leader = pair.nodes["c1"].controller
    assert leader is not None
    assert {key for key in leader.login._failures if key[0] == "from"} == {("from", "ipv4:127.0.0.1")}


async def test_another_controller_is_believed_about_the_address(pair: Rack) -> None:
    request = identity_pb2.CreateTokenRequest(user="alpha-member", password="wrong").SerializeToString()
    async with pair.channel(pair.nodes["c1"].member.agents, pair.tls("c2")) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary(LOGIN)(request, metadata=(("x-skyrack-origin", "ipv4:203.0.113.9"),))
    leader = pair.nodes["c1"].controller
    assert leader is not None
    assert ("from", "ipv4:203.0.113.9") in leader.login._failures


async def test_what_comes_back_is_what_the_leader_said(pair: Rack) -> None:
    """Status, details, trailing metadata, request id: the same at both."""
    answers = []
    for name in ("c1", "c2"):
        async with pair.channel(pair.nodes[name].api) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/skyrack.v1.ServerService/GetServer")(
                    server_pb2.GetServerRequest(server_id="none").SerializeToString(),
                    metadata=(*bearer(pair.tokens["alpha/member"]), ("x-request-id", "mine")),
                )
            error = caught.value
            answers.append((error.code(), error.details(), sorted(error.trailing_metadata() or ())))
    assert answers[0] == answers[1]
    assert ("x-request-id", "mine") in answers[0][2]


async def test_not_held_beyond_the_deadline_of_the_call(tmp_path: Path, runtime: Runtime) -> None:
    async with rack(tmp_path, runtime, "c1") as made:
        async with made.channel(made.nodes["c1"].api) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(LIST)(nothing(), timeout=1.5)
    assert rpc.from_rpc_error(caught.value).reason == "NO_LEADER"
