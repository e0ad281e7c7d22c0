"""Sessions with agents, the controller's end.

One session an agent; a newer one of the same agent ends the older. After the welcome the agent is sent its desired state
whole (or told that what it holds is right), then deltas whenever a commit touched its node, or a network that it carries (then
a moment later, together with what follows). What comes up is applied in one transaction a message and only to what the node
holds. A certificate that was replaced ends its session at the next commit
that touches the node.

A session talks in tasks of its own, one that reads and one for each kind of thing that is sent: nobody else's cancellation
can break off a message in the middle, which would end the stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from google.protobuf.json_format import MessageToDict

from controllerd.agents import clock, order
from controllerd.agents.clock import AgentClock
from controllerd.agents.compilation import Compilation, Compile, Wanted
from controllerd.agents.desired.state import State
from controllerd.agents.door import Door
from controllerd.agents.intake import FAULT_LENGTH_MAX, Intake
from controllerd.domain.node import AGENT_OF_ROLE, AgentRecord, Node, check_agent
from controllerd.store import agent_task, event, recovery, server
from controllerd.store import node as node_store
from controllerd.store.database import Database, Tx
from controllerd.store.network import CARRIED
from daemonkit import metrics
from daemonkit.errors import Fenced, Forbidden, InvalidArgument, SkyrackError, Unavailable
from daemonkit.runtime import Runtime
from daemonkit.tls import Identity
from daemonkit.transport import ControllerStream
from skyrack.v1 import agent_pb2

log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 10.0
ASK_TIMEOUT_S = 10.0
INVENTORY_BYTES_MAX = 2 << 20  # some 30,000 cached images
HEARTBEAT_SHARE_S = 0.01
# News of other nodes' ports wait for more of them: the longer the more sessions must hear them, so that in a burst of launches
# on large networks they take a third of a core and not all of it.
GATHER_SHARE_S, GATHER_MIN_S, GATHER_MAX_S = 0.005, 0.05, 1.0
QUERIES_MAX = 64  # questions that wait to be sent to one agent

KINDS = {
    agent_pb2.AGENT_KIND_COMPUTED: "computed",
    agent_pb2.AGENT_KIND_NETWORKD: "networkd",
    agent_pb2.AGENT_KIND_STORAGED: "storaged",
}


@dataclass(frozen=True)
class SessionSettings:
    """`heartbeat_interval_s`, and with it `silence_max_s` (a session without a message for so long is ended): for a few agents.
    Where there are many it is HEARTBEAT_SHARE_S for each of them, so that all together cost no more than that. A connection
    that breaks is seen by gRPC's own pings, however long the interval is."""

    controllers: Callable[[], Sequence[str]]  # what agents are told to dial
    heartbeat_interval_s: float
    silence_max_s: float

    def heartbeat_of_s(self, agents: int) -> float:
        return max(self.heartbeat_interval_s, agents * HEARTBEAT_SHARE_S)

    def silence_of_s(self, agents: int) -> float:
        return self.silence_max_s * self.heartbeat_of_s(agents) / self.heartbeat_interval_s


@dataclass(eq=False)
class _Session:
    node: Node
    kind: str
    stream: ControllerStream
    dirty: asyncio.Event = field(default_factory=asyncio.Event)
    generation: int = 0  # of what was sent last
    sent: State | None = None  # as the agent holds it
    touched: bool = True  # the node's own rows changed since; else only what networks tell of others
    tasks_sent: set[str] = field(default_factory=set)
    carried: frozenset[str] = frozenset()  # networks that it is entered with
    whole_wanted: bool = False  # the agent asked for its desired state afresh
    heard_s: float = 0.0
    agents: int = 0  # of the cloud when it began: what its interval is for
    on_hold: bool = False  # when it began: see `recovery`
    heeded: asyncio.Event = field(default_factory=asyncio.Event)  # its turn came, and what it says is read
    taking: bool = False  # it waits for its turn, or a message of its is being applied: silence now is ours
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    queries: asyncio.Queue[agent_pb2.Query] = field(default_factory=lambda: asyncio.Queue(QUERIES_MAX))
    questions: dict[str, asyncio.Future[agent_pb2.Answer]] = field(default_factory=dict)
    clock: AgentClock = field(default_factory=AgentClock)

    @property
    def key(self) -> tuple[str, str]:
        return self.node.id, self.kind


class Sessions:
    def __init__(
        self, database: Database, compilers: Mapping[str, Compile], intake: Intake, settings: SessionSettings, runtime: Runtime
    ) -> None:
        self._db, self._compilation, self._intake = database, Compilation(database, compilers), intake
        self._settings, self._runtime = settings, runtime
        self._door = Door()
        self._sessions: dict[tuple[str, str], _Session] = {}
        self._carrying: dict[str, dict[_Session, None]] = {}  # network -> sessions that were sent something of it
        self._gathering: dict[_Session, None] = {}  # wait for more of their networks' news
        self._generations: dict[tuple[str, str], int] = {}  # they rise through all sessions of an agent in this epoch

    def notice(self, touched: set[str]) -> None:
        """Subscriber of the store: wakes the sessions of touched nodes, and those that carry a touched network."""
        for key in touched:
            what, _, name = key.rpartition(":")
            if key.startswith(CARRIED):
                self._compilation.forget(name)
                self._gather(self._carrying.get(name, ()))
            for kind in (what,) if what else KINDS.values():
                if session := self._sessions.get((name, kind)):
                    session.touched = True
                    session.dirty.set()

    def _gather(self, sessions: Collection[_Session]) -> None:
        """A port that comes or goes is news for every node of its network, but only its own must hear of it at once."""
        if not self._gathering and sessions:
            wait_s = min(max(len(sessions) * GATHER_SHARE_S, GATHER_MIN_S), GATHER_MAX_S)
            asyncio.get_running_loop().call_later(wait_s, self._gathered)
        self._gathering.update(dict.fromkeys(sessions))

    def _gathered(self) -> None:
        sessions, self._gathering = self._gathering, {}
        for session in sessions:
            session.dirty.set()

    def connected(self, node_id: str, kind: str) -> bool:
        return (node_id, kind) in self._sessions

    def clock_offset_s(self, node_id: str, kind: str) -> float | None:
        """How far the agent's machine's clock is ahead of the cloud's time. None: not in session, or not known yet."""
        session = self._sessions.get((node_id, kind))
        return session.clock.offset_s if session else None

    async def ask(self, node_id: str, kind: str, query: agent_pb2.Query) -> bytes:
        """A question to an agent. Errors: Unavailable (not in session, no answer, or the agent's fault)."""
        session = self._sessions.get((node_id, kind))
        if session is None or session.queries.full():
            raise Unavailable("the node is not in session now" if session is None else "the node does not read")
        query.query_id = self._runtime.new_id()
        future: asyncio.Future[agent_pb2.Answer] = asyncio.get_running_loop().create_future()
        session.questions[query.query_id] = future
        session.queries.put_nowait(query)
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                answer = await future
        except TimeoutError:
            raise Unavailable("the node did not answer in time") from None
        finally:
            session.questions.pop(query.query_id, None)
        if not answer.ok:
            raise Unavailable(answer.fault[:FAULT_LENGTH_MAX])
        return answer.body

    # ---- one session

    async def serve(self, stream: ControllerStream, identity: Identity) -> None:
        """Runs one session to its end. Errors: Forbidden, InvalidArgument, Fenced before it; Unavailable when it breaks.

        In a task of its own: Python 3.11's task groups leave a cancellation counted on a task whose children failed, and the
        caller's later timeouts would then not be told from cancellations.
        """
        raise await asyncio.get_running_loop().create_task(self._attempt(stream, identity))

    async def _attempt(self, stream: ControllerStream, identity: Identity) -> Exception:
        """Gives why the session ended."""
        try:
            hello = await _hello(stream)
            came_s = self._db.now_s()
            with ExitStack() as stack:
                async with self._door.passed():
                    session = await self._admit(stream, hello, identity)
                    session.clock.told(hello, came_s)
                    stack.enter_context(self._registered(session))
                    session.agents, session.on_hold = await self._db.write(lambda tx: self._record(tx, session, hello))
                await self._talk(session, hello)
        except Exception as error:
            return _reason(error)
        raise AssertionError("a session ends by an error only")

    async def _admit(self, stream: ControllerStream, hello: agent_pb2.Hello, identity: Identity) -> _Session:
        kind = KINDS.get(hello.kind)
        if kind is None:
            raise InvalidArgument("hello.kind", "unknown agent kind")
        check_agent(hello.version, hello.boot_id, _content(hello.inventory))
        if hello.highest_epoch > self._db.epoch:
            log.error(
                "an agent has seen a higher epoch: another controller leads it, or this one's state is an old copy",
                extra={"node": identity.node, "epoch": hello.highest_epoch},
            )
            raise Fenced(f"agent has seen epoch {hello.highest_epoch}, this controller has {self._db.epoch}")
        try:
            node = await self._db.read(lambda tx: _known(tx, hello, kind, identity))
        except Forbidden as error:
            metrics.REFUSED_PEERS.labels(error.metadata.get("why", "other")).inc()
            raise
        return _Session(node, kind, stream, heard_s=self._runtime.clock.boottime_s())

    @contextmanager
    def _registered(self, session: _Session) -> Iterator[None]:
        """Ends an older session of the agent. Coming and going take their places in the order of writes at once, so that
        an agent that came back is not written down as gone by the end of its former session."""
        if older := self._sessions.get(session.key):
            older.ended.set()
        self._sessions[session.key] = session
        log.info("agent in session", extra={"node": session.node.name, "agent": session.kind})
        clock.AGENTS_OFF.inc(session.clock.off is True)
        try:
            yield
        finally:
            clock.AGENTS_OFF.dec(session.clock.off is True)
            self._carry(session, ())
            if self._sessions.get(session.key) is session:
                del self._sessions[session.key]
                gone = self._db.submit(lambda tx: node_store.disconnected(tx, *session.key))
                gone.add_done_callback(_nobody_asks)
            for future in session.questions.values():
                if not future.done():
                    future.set_exception(Unavailable("the node left before it answered"))
            log.info("agent left", extra={"node": session.node.name, "agent": session.kind})

    def _record(self, tx: Tx, session: _Session, hello: agent_pb2.Hello) -> tuple[int, bool]:
        """Gives how many agents the cloud has, and whether this one is told nothing yet."""
        known = node_store.agent(tx, session.node.id, session.kind)
        inventory = _content(hello.inventory)
        record = AgentRecord(session.node.id, session.kind, True, tx.now, False, hello.version, hello.boot_id, inventory)
        node_store.put_agent(tx, record)
        if known is None and hello.desired_generation and recovery.restored(tx):
            recovery.hold(tx, session.node.id, session.kind)  # it joined after the backup, and again since the restore
        if known is None or known.lost:
            kind = "node.agent_up" if known is None else "node.back"
            event.record(tx, kind, "", session.node.id, f"{session.kind} on {session.node.name} is in session")
            tx.touch(*server.ids_of_node(tx, session.node.id))  # they no longer show UNKNOWN
        if session.clock.off is not None:
            clock.record(tx, session.node, session.clock)
        return node_store.count_agents(tx), recovery.held(tx, *session.key)

    async def _talk(self, session: _Session, hello: agent_pb2.Hello) -> None:
        welcome = agent_pb2.Welcome(
            controllers=self._settings.controllers(), nodes=session.agents, node_id=session.node.id,
            heartbeat_interval_ms=int(self._settings.heartbeat_of_s(session.agents) * 1000),
        )  # fmt: skip
        await session.stream.send(self._message(welcome=welcome))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._receive_all(session))
            group.create_task(self._push_all(session, hello.desired_hash))
            group.create_task(self._ask_all(session))
            group.create_task(self._watch_silence(session))

    async def _watch_silence(self, session: _Session) -> None:
        silence_max_s = self._settings.silence_of_s(session.agents)
        while True:
            rest_s = session.heard_s + silence_max_s - self._runtime.clock.boottime_s()
            if session.taking:
                rest_s = silence_max_s
            if rest_s <= 0:
                raise Unavailable("the agent is silent")
            try:
                async with asyncio.timeout(rest_s):
                    await session.ended.wait()
            except TimeoutError:
                continue
            raise Unavailable("a newer session of this agent began")

    # ---- down

    def _message(self, **body: object) -> agent_pb2.ControllerMessage:
        return agent_pb2.ControllerMessage(epoch=self._db.epoch, **body)  # type: ignore[arg-type]

    async def _push(self, session: _Session, held: bytes | None) -> None:
        """Brings the agent up to date, by a delta or, with `held` (hash of what it has; b"" = unknown), whole.

        Errors: Forbidden when the node is gone or its certificate was replaced.
        """
        wanted = Wanted(session.node, session.kind, session.sent, session.touched, held)
        session.touched = False
        compiled = await self._compilation.compile(wanted)
        session.sent = compiled.state
        self._carry(session, compiled.state.wires)
        if compiled.message is not None:
            compiled.message.base = 0 if held is not None else session.generation
            compiled.message.generation = self._next_generation(session)
            await session.stream.send(self._message(desired=compiled.message))
        for task_id, body, deadline in compiled.tasks:
            if task_id not in session.tasks_sent:
                session.tasks_sent.add(task_id)
                task = order.remaining(body, deadline - self._db.now_s())
                await session.stream.send(self._message(task=task))

    def _carry(self, session: _Session, network_ids: Iterable[str]) -> None:
        """Enters the session with these networks and no others."""
        before, after = session.carried, frozenset(network_ids)
        for network_id in before - after:
            sessions = self._carrying[network_id]
            del sessions[session]
            if not sessions:
                del self._carrying[network_id]
        for network_id in after - before:
            self._carrying.setdefault(network_id, {})[session] = None
        session.carried = after
        if self._compilation.outdated(after):  # it was not entered yet when that was told
            session.dirty.set()

    async def _push_all(self, session: _Session, held: bytes) -> None:
        """`held`: hash of what the agent has from an earlier session."""
        session.taking = True
        await self._door.quiet()
        session.taking, session.heard_s = False, self._runtime.clock.boottime_s()
        if session.on_hold:
            session.heeded.set()
            await self._until_released(session)
        await self._push(session, held)
        session.heeded.set()
        session.dirty.set()  # whatever changed meanwhile
        while True:
            await session.dirty.wait()
            session.dirty.clear()
            whole, session.whole_wanted = session.whole_wanted, False
            await self._push(session, b"" if whole else None)

    async def _until_released(self, session: _Session) -> None:
        """After a restore from a backup an agent is told nothing before it was compared."""
        while await self._db.read(lambda tx: recovery.held(tx, *session.key)):
            await session.dirty.wait()
            session.dirty.clear()

    def _next_generation(self, session: _Session) -> int:
        session.generation = self._generations.get(session.key, 0) + 1
        self._generations[session.key] = session.generation
        return session.generation

    async def _ask_all(self, session: _Session) -> None:
        while True:
            query = await session.queries.get()
            if query.query_id in session.questions:  # somebody still waits for the answer
                await session.stream.send(self._message(query=query))

    # ---- up

    async def _receive_all(self, session: _Session) -> None:
        await session.heeded.wait()
        while True:
            message = await session.stream.receive()
            if session.ended.is_set():  # what a newer session of the agent has reported must not be overwritten
                raise Unavailable("a newer session of this agent began")
            session.taking = True
            await self._take(session, message)
            session.taking, session.heard_s = False, self._runtime.clock.boottime_s()

    async def _take(self, session: _Session, message: agent_pb2.AgentMessage) -> None:
        match message.WhichOneof("body"):
            case "report":
                if message.report.objects or message.report.whole:
                    await self._db.write(lambda tx: self._intake.report(tx, session.node, session.kind, message.report))
                await session.stream.send(self._message(report_ack=agent_pb2.ReportAck(seq=message.report.seq)))
            case "telemetry":
                last = await self._db.write(lambda tx: self._intake.telemetry(tx, session.node, message.telemetry))
                ack = agent_pb2.TelemetryAck(incarnation=message.telemetry.incarnation, seq=last)
                await session.stream.send(self._message(telemetry_ack=ack))
            case "task_result":
                await self._take_result(session, message.task_result)
            case "heartbeat":
                await self._take_clocks(session, message.heartbeat)
                if message.heartbeat.HasField("inventory"):
                    await self._db.write(lambda tx: self._new_inventory(tx, session, message.heartbeat.inventory))
            case "resync":
                why = message.resync.why[:FAULT_LENGTH_MAX]
                log.warning("resync", extra={"node": session.node.name, "agent": session.kind, "why": why})
                session.whole_wanted = True
                session.dirty.set()
            case "answer":
                future = session.questions.get(message.answer.query_id)
                if future and not future.done():
                    future.set_result(message.answer)

    async def _take_clocks(self, session: _Session, beat: agent_pb2.Heartbeat) -> None:
        before = session.clock.off
        if session.clock.told(beat, self._db.now_s()):
            clock.AGENTS_OFF.inc((session.clock.off is True) - (before is True))
            await self._db.write(lambda tx: clock.record(tx, session.node, session.clock))

    async def _take_result(self, session: _Session, result: agent_pb2.TaskResult) -> None:
        def end(tx: Tx) -> None:
            reason, fault = result.reason[:FAULT_LENGTH_MAX], result.fault[:FAULT_LENGTH_MAX]
            agent_task.end(tx, session.node.id, result.task_id, result.ok, reason, fault)

        await self._db.write(end)
        await session.stream.send(self._message(report_ack=agent_pb2.ReportAck(task_ids=[result.task_id])))

    def _new_inventory(self, tx: Tx, session: _Session, inventory: agent_pb2.Inventory) -> None:
        known = node_store.agent(tx, session.node.id, session.kind)
        if known is not None:
            content = _content(inventory)
            check_agent(known.version, known.boot_id, content)
            record = AgentRecord(known.node_id, known.kind, True, tx.now, False, known.version, known.boot_id, content)
            node_store.put_agent(tx, record)


def _content(inventory: agent_pb2.Inventory) -> dict[str, object]:
    """As it is stored. Errors: InvalidArgument for a monstrous one."""
    if inventory.ByteSize() > INVENTORY_BYTES_MAX:
        raise InvalidArgument("inventory", f"at most {INVENTORY_BYTES_MAX} bytes, has {inventory.ByteSize()}")
    return dict(MessageToDict(inventory, preserving_proto_field_name=True))


async def _hello(stream: ControllerStream) -> agent_pb2.Hello:
    """Errors: Unavailable (none in time), InvalidArgument (something else)."""
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            first = await stream.receive()
    except TimeoutError:
        raise Unavailable("no hello in time") from None
    if first.WhichOneof("body") != "hello":
        raise InvalidArgument("body", "the first message must be hello")
    return first.hello


def _reason(why: Exception) -> Exception:
    """Of `why`, which may be a task group's: the first bug, for the log; else the first error of ours."""
    found = list(why.exceptions) if isinstance(why, ExceptionGroup) else [why]
    bugs = [error for error in found if not isinstance(error, SkyrackError)]
    return (bugs or found)[0]


def _nobody_asks(gone: asyncio.Future[None]) -> None:
    """The store may be closing; the next start takes every agent for gone anyway."""
    if not gone.cancelled():
        gone.exception()


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
