"""Agents find the leader; who must not come in does not, and is counted."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import grpc
import pytest

from controllerd.leadership.member import Member
from controllerd.peers.snapshot import SnapshotClient
from daemonkit.errors import Forbidden, NotLeader, Unavailable
from daemonkit.runtime import Runtime
from daemonkit.tls import TlsFiles, new_key, request
from daemonkit.transport import GrpcDialer
from skyrack.v1 import agent_pb2, node_pb2
from tests.controllerd.front.rig import Rack
from tests.controllerd.identity.conftest import bearer
from tests.pki import Pki


async def greet(rack: Rack, controller: str, directory: Path, name: str) -> None:
    """One hello. Raises what the controller answers, if it is no welcome."""
    stream = await GrpcDialer(TlsFiles(directory)).dial(rack.nodes[controller].member.agents)
    try:
        await stream.send(agent_pb2.AgentMessage(hello=agent_pb2.Hello(kind=agent_pb2.AGENT_KIND_STORAGED, node=name)))
        assert (await stream.receive()).WhichOneof("body") == "welcome"
    finally:
        await stream.close()


async def test_agents_follow_the_leader(pair: Rack) -> None:
    sessions = [await pair.agent(f"s{n}") for n in range(5)]
    async with asyncio.timeout(20):
        for old, new in (("c1", "c2"), ("c2", "c1")):
            for session in sessions:
                await session.connected.wait()
            await pair.resign(old)
            while any(session.connected.is_set() for session in sessions):  # noqa: ASYNC110 - several to wait for
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.5)
            await pair.elect(new)
        for session in sessions:
            await session.connected.wait()


async def test_a_standby_names_the_leader(pair: Rack) -> None:
    directory = await pair.join("s1", "storage")
    with pytest.raises(NotLeader) as told:
        await greet(pair, "c2", directory, "s1")
    assert told.value.leader == pair.nodes["c1"].member.agents
    await greet(pair, "c1", directory, "s1")


async def test_an_agent_is_held_until_somebody_leads(pair: Rack) -> None:
    directory = await pair.join("s1", "storage")
    await pair.resign("c1")
    held = asyncio.create_task(greet(pair, "c1", directory, "s1"))
    await asyncio.sleep(0.3)
    assert not held.done()
    await pair.elect("c2")
    with pytest.raises(NotLeader) as told:
        await held
    assert told.value.leader == pair.nodes["c2"].member.agents


async def test_an_agent_stays_where_it_was_held_if_that_one_leads(pair: Rack) -> None:
    directory = await pair.join("s1", "storage")
    await pair.resign("c1")
    held = asyncio.create_task(greet(pair, "c2", directory, "s1"))
    await asyncio.sleep(0.3)
    assert not held.done()
    await pair.elect("c2")
    await held


async def test_a_replaced_certificate(pair: Rack) -> None:
    await pair.join("s1", "storage")
    other = pair.pki.node("s1", "storage")  # another serial than the one that joined
    with pair.refused("old"), pytest.raises(Forbidden, match="replaced"):
        await greet(pair, "c1", other, "s1")


async def test_a_certificate_of_another_role(pair: Rack) -> None:
    compute = await pair.join("k1", "compute")
    with pair.refused("role"), pytest.raises(Forbidden, match="role"):
        await greet(pair, "c1", compute, "k1")


@pytest.mark.parametrize("method", ["PeerService/GetSnapshot", "ServerService/ListServers", "IdentityService/CreateToken"])
@pytest.mark.parametrize("controller", ["c1", "c2"])
async def test_nodes_get_no_further_than_their_service(pair: Rack, method: str, controller: str) -> None:
    tls = pair.tls("s1", "storage")
    async with pair.channel(pair.nodes[controller].member.agents, tls) as channel:
        with pair.refused("role"), pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(f"/skyrack.v1.{method}")(b"", metadata=bearer(pair.tokens["admin"]))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_join_token_is_used_once(pair: Rack) -> None:
    async with pair.channel(pair.nodes["c2"].api) as channel:
        stub = node_pb2.JoinNodeRequest
        make = channel.unary_unary(
            "/skyrack.v1.NodeService/CreateJoinToken",
            node_pb2.CreateJoinTokenRequest.SerializeToString,
            node_pb2.JoinToken.FromString,
        )
        join = channel.unary_unary(
            "/skyrack.v1.NodeService/JoinNode", stub.SerializeToString, node_pb2.JoinNodeResponse.FromString
        )
        token = await make(node_pb2.CreateJoinTokenRequest(name="s9", roles=["storage"]), metadata=bearer(pair.tokens["admin"]))
        secret = _secret(token.token)
        csr = request(new_key(), "s9", ["127.0.0.1"])
        assert (await join(stub(secret=secret, name="s9", csr_pem=csr))).roles == ["storage"]
        with pair.refused("join"), pytest.raises(grpc.aio.AioRpcError) as caught:
            await join(stub(secret=secret, name="s9", csr_pem=csr))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def _secret(token: str) -> str:
    return str(json.loads(base64.urlsafe_b64decode(token))["secret"])


async def test_a_stranger_does_not_get_through_the_handshake(pair: Rack, tmp_path: Path) -> None:
    stranger = Pki(tmp_path / "other").node("s1", "storage")
    (stranger / "ca.pem").write_bytes(pair.ca.read_bytes())
    with pytest.raises(Unavailable):
        await greet(pair, "c1", stranger, "s1")


async def test_refusals_in_the_handshake_are_counted(tmp_path: Path) -> None:
    """In a process of its own: it is done to a whole process."""
    ours, strange = Pki(tmp_path / "ours").node("c1", "controller"), Pki(tmp_path / "o", "other").node("s1", "storage")
    (strange / "ca.pem").write_bytes((ours / "ca.pem").read_bytes())
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.controllerd.front.handshakes", str(ours), str(strange), stdout=PIPE, stderr=PIPE,
        env=os.environ | {"GRPC_VERBOSITY": "INFO"},
    )  # fmt: skip
    said, told = await process.communicate()
    assert said.decode().splitlines() == [
        "error UNAVAILABLE", "error UNAVAILABLE", "let in", "certificate True", "no_certificate True",
    ]  # fmt: skip
    lines = told.decode().splitlines()
    assert lines == ["refused in the TLS handshake", "still on standard error", "and after it"]


# ---- snapshots


async def test_a_snapshot_comes_whole(pair: Rack, runtime: Runtime, tmp_path: Path) -> None:
    content = bytes(range(256)) * (40 << 10)
    (tmp_path / "snapshot").write_bytes(content)
    client, into = SnapshotClient(pair.tls("c9"), runtime), tmp_path / "copy.db"
    assert await client.fetch_snapshot(pair.nodes["c1"].member, into) == 42
    assert into.read_bytes() == content
    assert not (tmp_path / "snapshot.tmp").exists()


async def test_a_snapshot_that_does_not_come(pair: Rack, runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "snapshot").write_bytes(b"x" * 1000)
    (tmp_path / "copy.db").write_bytes(b"what was there")
    client, into = SnapshotClient(pair.tls("c9"), runtime), tmp_path / "copy.db"
    with pytest.raises(NotLeader):
        await client.fetch_snapshot(pair.nodes["c2"].member, into)
    with pytest.raises(Unavailable):
        await client.fetch_snapshot(Member("c3", "", "127.0.0.1:1", "0", 1), into)
    storage = SnapshotClient(pair.tls("s1", "storage"), runtime)
    with pytest.raises(Forbidden):
        await storage.fetch_snapshot(pair.nodes["c1"].member, into)
    assert into.read_bytes() == b"what was there" and not (tmp_path / "copy.db.part").exists()
