"""Sessions with agents, the controller's end.

One session an agent; a newer one of the same agent ends the older. After the welcome the agent is sent its desired state
whole (or told that what it holds is right), then deltas whenever a commit touched its node. What comes up is applied in one
transaction a message and only to what the node holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from google.protobuf.json_format import MessageToDict

from controllerd.agents.intake import Intake
from controllerd.domain.node import AGENT_OF_ROLE, AgentRecord, Node
from controllerd.store import agent_task, event, server
from controllerd.store import node as node_store
from controllerd.store.database import Database, Tx
from daemonkit import metrics
from daemonkit.desired import encode, key_of, state_hash
from daemonkit.errors import Fenced, Forbidden, InvalidArgument, SkyrackError, Unavailable
from daemonkit.runtime import Runtime
from daemonkit.tls import Identity
from daemonkit.transport import ControllerStream
from skyrack.v1 import agent_pb2

log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 10.0
ASK_TIMEOUT_S = 10.0

KINDS = {
    agent_pb2.AGENT_KIND_COMPUTED: "computed",
    agent_pb2.AGENT_KIND_NETWORKD: "networkd",
    agent_pb2.AGENT_KIND_STORAGED: "storaged",
}

# Everything a node of that agent kind shall have: (tx, node id) -> objects.
Compile = Callable[[Tx, str], list[agent_pb2.DesiredObject]]


@dataclass(frozen=True)
class SessionSettings:
    controllers: tuple[str, ...]  # what agents are told to dial
    heartbeat_interval_s: float
    silence_max_s: float  # a session without a message for so long is ended


@dataclass
class _Session:
    node: Node
    kind: str
    stream: ControllerStream
    dirty: asyncio.Event = field(default_factory=asyncio.Event)
    generation: int = 0
    sent: dict[str, bytes] = field(default_factory=dict)  # key -> encoded object, as the agent holds it
    tasks_sent: set[str] = field(default_factory=set)
    heard_s: float = 0.0
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Sessions:
    def __init__(
        self, database: Database, compilers: Mapping[str, Compile], intake: Intake, settings: SessionSettings, runtime: Runtime
    ) -> None:
        self._db, self._compilers, self._intake = database, compilers, intake
        self._settings, self._runtime = settings, runtime
        self._sessions: dict[tuple[str, str], _Session] = {}
        self._questions: dict[str, asyncio.Future[agent_pb2.Answer]] = {}

    def notice(self, touched: set[str]) -> None:
        """Subscriber of the store: wakes the sessions of touched nodes."""
        for session in self._sessions.values():
            if session.node.id in touched:
                session.dirty.set()

    def connected(self, node_id: str, kind: str) -> bool:
        return (node_id, kind) in self._sessions

    async def ask(self, node_id: str, kind: str, query: agent_pb2.Query) -> bytes:
        """A question to an agent. Errors: Unavailable (not in session, no answer), SkyrackError with the agent's fault."""
        session = self._sessions.get((node_id, kind))
        if session is None:
            raise Unavailable("the node is not in session now")
        query.query_id = self._runtime.new_id()
        future: asyncio.Future[agent_pb2.Answer] = asyncio.get_running_loop().create_future()
        self._questions[query.query_id] = future
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                await session.stream.send(self._message(query=query))
                answer = await future
        except TimeoutError:
            raise Unavailable("the node did not answer in time") from None
        finally:
            del self._questions[query.query_id]
        if not answer.ok:
            raise Unavailable(answer.fault)
        return answer.body

    # ---- one session

    async def serve(self, stream: ControllerStream, identity: Identity) -> None:
        """Runs one session to its end. Errors: Forbidden, InvalidArgument, Fenced before it; Unavailable when it breaks."""
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            first = await stream.receive()
        if first.WhichOneof("body") != "hello":
            raise InvalidArgument("body", "the first message must be hello")
        hello = first.hello
        session = await self._admit(stream, hello, identity)
        key = (session.node.id, session.kind)
        if older := self._sessions.get(key):
            older.ended.set()
        self._sessions[key] = session
        log.info("agent in session", extra={"node": session.node.name, "agent": session.kind})
        try:
            await self._talk(session, hello)
        finally:
            if self._sessions.get(key) is session:
                del self._sessions[key]
                await asyncio.shield(self._db.write(lambda tx: node_store.disconnected(tx, *key)))
            log.info("agent left", extra={"node": session.node.name, "agent": session.kind})

    async def _admit(self, stream: ControllerStream, hello: agent_pb2.Hello, identity: Identity) -> _Session:
        kind = KINDS.get(hello.kind)
        if kind is None:
            raise InvalidArgument("hello.kind", "unknown agent kind")
        if hello.highest_epoch > self._db.epoch:
            raise Fenced(f"agent has seen epoch {hello.highest_epoch}, this controller has {self._db.epoch}")
        try:
            node = await self._db.read(lambda tx: _known(tx, hello, kind, identity))
        except Forbidden as error:
            metrics.REFUSED_PEERS.labels(error.metadata.get("why", "other")).inc()
            raise
        session = _Session(node, kind, stream, heard_s=self._runtime.clock.boottime_s())
        await self._db.write(lambda tx: self._record(tx, session, hello))
        return session

    def _record(self, tx: Tx, session: _Session, hello: agent_pb2.Hello) -> None:
        known = node_store.agent(tx, session.node.id, session.kind)
        inventory = MessageToDict(hello.inventory, preserving_proto_field_name=True)
        record = AgentRecord(session.node.id, session.kind, True, tx.now, False, hello.version, hello.boot_id, inventory)
        node_store.put_agent(tx, record)
        if known is None or known.lost:
            kind = "node.agent_up" if known is None else "node.back"
            event.record(tx, kind, "", session.node.id, f"{session.kind} on {session.node.name} is in session")
            tx.touch(*server.ids_of_node(tx, session.node.id))  # they no longer show UNKNOWN

    async def _talk(self, session: _Session, hello: agent_pb2.Hello) -> None:
        welcome = agent_pb2.Welcome(
            controllers=self._settings.controllers, nodes=len(self._sessions), node_id=session.node.id,
            heartbeat_interval_ms=int(self._settings.heartbeat_interval_s * 1000),
        )  # fmt: skip
        await session.stream.send(self._message(welcome=welcome))
        await self._send_first(session, hello)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive_all(session))
                group.create_task(self._push_all(session))
                group.create_task(self._watch_silence(session))
        except* SkyrackError as several:
            raise several.exceptions[0] from None

    async def _watch_silence(self, session: _Session) -> None:
        while True:
            rest_s = session.heard_s + self._settings.silence_max_s - self._runtime.clock.boottime_s()
            if rest_s <= 0:
                raise Unavailable("the agent is silent")
            try:
                async with asyncio.timeout(rest_s):
                    await session.ended.wait()
                raise Unavailable("a newer session of this agent began")
            except TimeoutError:
                continue

    # ---- down

    def _message(self, **body: object) -> agent_pb2.ControllerMessage:
        return agent_pb2.ControllerMessage(epoch=self._db.epoch, **body)  # type: ignore[arg-type]

    async def _compile(self, session: _Session) -> dict[str, agent_pb2.DesiredObject]:
        compiler = self._compilers[session.kind]
        objects = await self._db.read(lambda tx: compiler(tx, session.node.id))
        return {key_of(o): o for o in objects}

    async def _send_first(self, session: _Session, hello: agent_pb2.Hello) -> None:
        session.dirty.set()  # tasks, and whatever changes while this is sent
        objects = await self._compile(session)
        session.sent = {k: encode(o) for k, o in objects.items()}
        session.generation = 1
        digest = state_hash(session.sent)
        if hello.desired_hash == digest:
            state = agent_pb2.DesiredState(generation=1, hash=digest, same=True)
        else:
            state = agent_pb2.DesiredState(generation=1, hash=digest, put=objects.values())
        await session.stream.send(self._message(desired=state))

    async def _push_all(self, session: _Session) -> None:
        while True:
            await session.dirty.wait()
            session.dirty.clear()
            await self._push_delta(session)
            await self._push_tasks(session)

    async def _push_delta(self, session: _Session) -> None:
        objects = await self._compile(session)
        bodies = {k: encode(o) for k, o in objects.items()}
        put = [objects[k] for k, body in bodies.items() if session.sent.get(k) != body]
        remove = [k for k in session.sent if k not in bodies]
        if not put and not remove:
            return
        base = session.generation
        session.generation, session.sent = base + 1, bodies
        state = agent_pb2.DesiredState(base=base, generation=base + 1, put=put, remove=remove, hash=state_hash(bodies))
        await session.stream.send(self._message(desired=state))

    async def _push_tasks(self, session: _Session) -> None:
        found = await self._db.read(lambda tx: agent_task.outstanding(tx, session.node.id, session.kind))
        for task_id, body in found:
            if task_id not in session.tasks_sent:
                session.tasks_sent.add(task_id)
                await session.stream.send(self._message(task=agent_pb2.Task.FromString(body)))

    # ---- up

    async def _receive_all(self, session: _Session) -> None:
        while True:
            message = await session.stream.receive()
            if session.ended.is_set():  # what a newer session of the agent has reported must not be overwritten
                raise Unavailable("a newer session of this agent began")
            session.heard_s = self._runtime.clock.boottime_s()
            await self._take(session, message)

    async def _take(self, session: _Session, message: agent_pb2.AgentMessage) -> None:
        match message.WhichOneof("body"):
            case "report":
                await self._db.write(lambda tx: self._intake.report(tx, session.node, session.kind, message.report))
                await session.stream.send(self._message(report_ack=agent_pb2.ReportAck(seq=message.report.seq)))
            case "telemetry":
                last = await self._db.write(lambda tx: self._intake.telemetry(tx, session.node, message.telemetry))
                ack = agent_pb2.TelemetryAck(incarnation=message.telemetry.incarnation, seq=last)
                await session.stream.send(self._message(telemetry_ack=ack))
            case "task_result":
                await self._take_result(session, message.task_result)
            case "heartbeat":
                if message.heartbeat.HasField("inventory"):
                    await self._db.write(lambda tx: self._new_inventory(tx, session, message.heartbeat.inventory))
            case "resync":
                log.warning("resync", extra={"node": session.node.name, "agent": session.kind, "why": message.resync.why})
                await self._send_first(session, agent_pb2.Hello())
            case "answer":
                future = self._questions.get(message.answer.query_id)
                if future and not future.done():
                    future.set_result(message.answer)

    async def _take_result(self, session: _Session, result: agent_pb2.TaskResult) -> None:
        def end(tx: Tx) -> None:
            agent_task.end(tx, session.node.id, result.task_id, result.ok, result.reason, result.fault)

        await self._db.write(end)
        await session.stream.send(self._message(report_ack=agent_pb2.ReportAck(task_ids=[result.task_id])))

    def _new_inventory(self, tx: Tx, session: _Session, inventory: agent_pb2.Inventory) -> None:
        known = node_store.agent(tx, session.node.id, session.kind)
        if known is not None:
            content = MessageToDict(inventory, preserving_proto_field_name=True)
            record = AgentRecord(known.node_id, known.kind, True, tx.now, False, known.version, known.boot_id, content)
            node_store.put_agent(tx, record)


def _known(tx: Tx, hello: agent_pb2.Hello, kind: str, identity: Identity) -> Node:
    """The node whose certificate this is. Errors: Forbidden."""
    if hello.node != identity.node:
        raise Forbidden(f"the certificate is of {identity.node!r}, not of {hello.node!r}", why="name")
    if kind not in {AGENT_OF_ROLE.get(role) for role in identity.roles}:
        raise Forbidden(f"the certificate has no role for {kind}", why="role")
    node = node_store.by_name(tx, identity.node)
    if node is None:
        raise Forbidden(f"node {identity.node!r} is not (any more) of this cloud", why="unknown")
    if node.certificate_serial != str(identity.serial):
        raise Forbidden("the certificate was replaced by a newer one", why="old")
    return node
