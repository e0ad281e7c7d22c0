"""The controller's end of a session, with the real agent's end on the other side."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from controllerd.store import agent_task, node, tombstone
from controllerd.store.database import Tx
from daemonkit.errors import Fenced, Forbidden, InvalidArgument, SkyrackError, Unavailable
from daemonkit.tls import Identity
from daemonkit.transport import AgentStream
from skyrack.v1 import agent_pb2 as pb
from tests.controllerd.node.rig import ADDRESS, House, Storage, house
from tests.daemonkit import virtual

READY = pb.OBSERVED_STATE_READY


def seen(volume_id: str, state: pb.ObservedState.ValueType = READY) -> pb.ObservedObject:
    return pb.ObservedObject(id=volume_id, volume=pb.ObservedVolume(state=state))


async def dial(h: House, hello: pb.Hello, identity: Identity) -> AgentStream:
    """A session spoken by hand."""
    stream = await h.network.dialer(identity).dial(ADDRESS)
    await stream.send(pb.AgentMessage(hello=hello))
    return stream


async def until(stream: AgentStream, body: str) -> pb.ControllerMessage:
    async with asyncio.timeout(100):
        while True:
            message = await stream.receive()
            if message.WhichOneof("body") == body:
                return message


def hello(name: str = "s1", **fields: object) -> pb.Hello:
    return pb.Hello(kind=pb.AGENT_KIND_STORAGED, node=name, **fields)  # type: ignore[arg-type]


ID = Identity("s1", frozenset({"storage"}), 1)


def test_welcome_then_whole_then_deltas(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            node_ = await h.join("s1")
            await h.volume("v1", node_)
            agent = Storage()
            await h.start(agent, "s1")
            await asyncio.sleep(5)
            assert agent.changes == [{"volume/v1"}] and await h.connected(node_)
            await h.volume("v2", node_)
            await h.database.write(lambda tx: tx.touch(node_.id))  # nothing new: nothing sent
            await asyncio.sleep(1)
            assert agent.changes == [{"volume/v1"}, {"volume/v2"}]
            assert set(agent.mirror.bodies) == {"volume/v1", "volume/v2"} and agent.mirror.epoch == h.database.epoch
            agent.free_bytes = 77
            await asyncio.sleep(5)
            free = await h.row("SELECT json_extract(inventory, '$.storage.images_free_bytes') FROM agent")
            assert int(str(free)) == 77

    virtual.run(story())


def test_what_is_held_is_not_sent_again(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            node_ = await h.join("s1")
            await h.volume("v1", node_)
            agent = Storage()
            session = await h.start(agent, "s1")
            await asyncio.sleep(5)
            first = agent.mirror.generation
            h.network.link("s1", ADDRESS).cut()
            await asyncio.sleep(1)
            assert not await h.connected(node_)
            h.network.link("s1", ADDRESS).mend()
            await session.connected.wait()
            await asyncio.sleep(1)
            assert await h.connected(node_)
            assert agent.changes == [{"volume/v1"}] and agent.mirror.generation > first
            stream = await dial(h, hello(desired_hash=agent.mirror.hash()), ID)
            state = (await until(stream, "desired")).desired
            assert state.same and not state.put and state.generation > agent.mirror.generation - 1
            await stream.close()

    virtual.run(story())


def test_a_resync_brings_the_whole(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            node_ = await h.join("s1")
            await h.volume("v1", node_)
            stream = await dial(h, hello(), ID)
            first = (await until(stream, "desired")).desired
            await stream.send(pb.AgentMessage(resync=pb.Resync(why="test")))
            again = (await until(stream, "desired")).desired
            assert again.base == 0 and list(again.put) == list(first.put) and again.generation == first.generation + 1
            await h.volume("v2", node_)
            delta = (await until(stream, "desired")).desired
            assert delta.base == again.generation and [o.id for o in delta.put] == ["v2"]
            await stream.close()

    virtual.run(story())


def test_a_silent_agent_is_ended(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            node_ = await h.join("s1")
            stream = await dial(h, hello(), ID)
            await asyncio.sleep(5)
            assert await h.connected(node_)
            await stream.send(pb.AgentMessage(heartbeat=pb.Heartbeat()))
            await asyncio.sleep(5)
            assert await h.connected(node_)
            await asyncio.sleep(5)
            assert not await h.connected(node_)
            with pytest.raises(Unavailable, match="silent"):
                await until(stream, "query")

    virtual.run(story())


def test_a_newer_session_replaces_an_older_one(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            node_ = await h.join("s1")
            older = await dial(h, hello(), ID)
            await until(older, "desired")
            for _ in range(5):
                newer = await dial(h, hello(), ID)
                await until(newer, "desired")
                with pytest.raises(Unavailable, match="newer"):
                    await until(older, "query")
                assert await h.connected(node_)
                older = newer
            reconnected = await dial(h, hello(), ID)  # the end of the former one is seen at the same moment
            await older.close()
            await until(reconnected, "desired")
            assert await h.connected(node_)
            await reconnected.close()
            await asyncio.sleep(1)
            assert not await h.connected(node_)

    virtual.run(story())


def test_who_is_not_let_in(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            await h.join("s1")
            computed = pb.Hello(kind=pb.AGENT_KIND_COMPUTED, node="s1")
            cases: list[tuple[pb.Hello, Identity, type[SkyrackError]]] = [
                (hello("s2"), ID, Forbidden),  # another's name
                (hello("s3"), Identity("s3", frozenset({"storage"}), 1), Forbidden),  # not of this cloud
                (hello(), Identity("s1", frozenset({"storage"}), 2), Forbidden),  # an old certificate
                (hello(), Identity("s1", frozenset({"compute"}), 1), Forbidden),  # not its role
                (computed, ID, Forbidden),
                (pb.Hello(node="s1"), ID, InvalidArgument),
                (hello(highest_epoch=h.database.epoch + 1), ID, Fenced),
            ]
            for greeting, identity, error in cases:
                stream = await dial(h, greeting, identity)
                with pytest.raises(error):
                    await stream.receive()
            mute = await h.network.dialer(ID).dial(ADDRESS)
            with pytest.raises(Unavailable, match="hello"):
                await mute.receive()
            rude = await h.network.dialer(ID).dial(ADDRESS)
            await rude.send(pb.AgentMessage(heartbeat=pb.Heartbeat()))
            with pytest.raises(InvalidArgument):
                await rude.receive()
            assert await h.row("SELECT count(*) FROM agent") == 0

    virtual.run(story())


def test_a_replaced_certificate_ends_the_session(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            node_ = await h.join("s1")
            stream = await dial(h, hello(), ID)
            await until(stream, "desired")
            await h.rejoin(node_, 2)
            with pytest.raises(Forbidden):
                await until(stream, "query")
            again = await dial(h, hello(), Identity("s1", frozenset({"storage"}), 2))
            await until(again, "desired")
            await again.close()

    virtual.run(story())


def test_an_agent_is_believed_about_its_own_node_only(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            mine, other = await h.join("s1"), await h.join("s2")
            await h.volume("mine", mine)
            await h.volume("foreign", other)
            await h.database.write(lambda tx: tombstone.put(tx, other.id, "volume", "buried"))
            stream = await dial(h, hello(), ID)
            gone = pb.OBSERVED_STATE_GONE
            nonsense = pb.ObservedObject(id="mine", volume=pb.ObservedVolume(state=99))  # type: ignore[arg-type]
            objects = [
                nonsense,
                seen("mine"),
                seen("foreign"),
                seen("buried", gone),
                seen("nowhere"),
                pb.ObservedObject(id="x"),
            ]
            objects.append(pb.ObservedObject(id="mine", server=pb.ObservedServer(state=gone)))
            await stream.send(pb.AgentMessage(report=pb.Report(seq=1, whole=True, objects=objects)))
            assert (await until(stream, "report_ack")).report_ack.seq == 1
            assert await h.row("SELECT observed_state FROM volume WHERE id = 'mine'") == "READY"
            assert await h.row("SELECT observed_state FROM volume WHERE id = 'foreign'") == ""
            assert await h.row("SELECT count(*) FROM tombstone") == 1
            await stream.send(pb.AgentMessage(report=pb.Report(seq=2)))
            assert (await until(stream, "report_ack")).report_ack.seq == 2
            await stream.close()

    virtual.run(story())


def test_absence_is_told_not_concluded(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            node_ = await h.join("s1")
            await h.volume("v1", node_)

            def bury(tx: Tx) -> None:
                tx.run("UPDATE volume SET absent = 1")
                tombstone.put(tx, node_.id, "volume", "t1")

            await h.database.write(bury)
            stream = await dial(h, hello(), ID)
            await stream.send(pb.AgentMessage(report=pb.Report(seq=1, whole=True)))
            await until(stream, "report_ack")
            assert await h.row("SELECT observed_state FROM volume") == "" and await h.row("SELECT count(*) FROM tombstone") == 1
            objects = [seen("v1", pb.OBSERVED_STATE_GONE), seen("t1", pb.OBSERVED_STATE_GONE)]
            await stream.send(pb.AgentMessage(report=pb.Report(seq=2, objects=objects)))
            await until(stream, "report_ack")
            assert (
                await h.row("SELECT observed_state FROM volume") == "GONE"
                and await h.row("SELECT count(*) FROM tombstone") == 0
            )
            await stream.close()

    virtual.run(story())


def test_an_action_happens_once(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            node_, other = await h.join("s1"), await h.join("s2")
            agent = Storage()
            session = await h.start(agent, "s1")
            await session.connected.wait()
            body = pb.Task(task_id="t1", reboot_server=pb.RebootServer(server_id="x")).SerializeToString()
            for _ in range(2):
                await h.database.write(lambda tx: agent_task.order(tx, "t1", node_.id, "storaged", body, tx.now + 60))
            await h.database.write(lambda tx: agent_task.order(tx, "t2", other.id, "storaged", body, tx.now + 60))
            await asyncio.sleep(1)
            h.network.link("s1", ADDRESS).cut()
            await asyncio.sleep(1)
            h.network.link("s1", ADDRESS).mend()
            await asyncio.sleep(10)
            assert agent.ran == ["t1"]
            assert await h.row("SELECT ok FROM agent_task WHERE id = 't1' AND ended = 1") == 1
            stream = await dial(h, hello(), ID)  # another node's action cannot be answered
            await stream.send(pb.AgentMessage(task_result=pb.TaskResult(task_id="t2", ok=True)))
            await until(stream, "report_ack")
            assert await h.row("SELECT ended FROM agent_task WHERE id = 't2'") == 0
            await stream.close()

    virtual.run(story())


def test_questions(tmp_path: Path) -> None:
    def question(server_id: str) -> pb.Query:
        return pb.Query(read_console_log=pb.ReadConsoleLog(server_id=server_id))

    async def story() -> None:
        async with house(tmp_path) as h:
            node_ = await h.join("s1")
            with pytest.raises(Unavailable):
                await h.sessions.ask(node_.id, "storaged", question("a"))
            agent = Storage()
            session = await h.start(agent, "s1")
            await session.connected.wait()
            await asyncio.sleep(1)
            asked = [h.sessions.ask(node_.id, "storaged", question(f"s{n}")) for n in range(20)]
            assert await asyncio.gather(*asked) == [f"log of s{n}".encode() for n in range(20)]
            agent.answers.clear()
            impatient = asyncio.create_task(h.sessions.ask(node_.id, "storaged", question("a")))
            await asyncio.sleep(1)
            impatient.cancel()
            with pytest.raises(Unavailable, match="in time"):
                await h.sessions.ask(node_.id, "storaged", question("b"))
            assert session.connected.is_set()  # neither of them cost the agent its session
            late = asyncio.create_task(h.sessions.ask(node_.id, "storaged", question("c")))
            await asyncio.sleep(1)
            h.network.link("s1", ADDRESS).cut()
            with pytest.raises(Unavailable, match="left"):
                async with asyncio.timeout(2):
                    await late

    virtual.run(story())


def test_telemetry_is_acknowledged_to_its_incarnation(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            await h.join("s1")
            stream = await dial(h, hello(), ID)
            for incarnation, seqs, expected in (("a", (1, 2), 2), ("a", (1, 2), 2), ("b", (1,), 1), ("a", (3,), 3)):
                samples = [pb.Sample(seq=seq, server_id="unknown", cpu_ns=1) for seq in seqs]
                await stream.send(pb.AgentMessage(telemetry=pb.Telemetry(incarnation=incarnation, samples=samples)))
                ack = (await until(stream, "telemetry_ack")).telemetry_ack
                assert (ack.incarnation, ack.seq) == (incarnation, expected)
            await stream.close()

    virtual.run(story())


def test_a_lost_agent_that_comes_back_is_told_of(tmp_path: Path) -> None:
    async def story() -> None:
        async with house(tmp_path) as h:
            node_ = await h.join("s1")
            for _ in range(2):
                stream = await dial(h, hello(), ID)
                await until(stream, "desired")
                await stream.close()
                await asyncio.sleep(1)
            assert await h.row("SELECT count(*) FROM event WHERE kind = 'node.agent_up'") == 1
            assert await h.database.write(lambda tx: node.lose_silent(tx, tx.now)) == [(node_.id, "storaged")]
            stream = await dial(h, hello(), ID)
            await until(stream, "desired")
            assert await h.row("SELECT count(*) FROM event WHERE kind = 'node.back'") == 1
            assert await h.row("SELECT lost FROM agent") == 0
            await stream.close()

    virtual.run(story())
