"""An agent's session with the leading controller, the same for computed, networkd and storaged.

Guarantees: messages of a lower epoch than the highest one seen (durably) are refused; a task runs at most once an id;
a session begins with a whole report; task results are resent until acknowledged; telemetry is shipped from the durable
spool, exactly once. Without a controller the agent goes on with the desired state it holds; the session dials for ever,
politely.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from daemonkit import desired
from daemonkit.errors import Fenced, Forbidden, NotLeader, SkyrackError, Unauthenticated, Unavailable
from daemonkit.ledger import Ledger
from daemonkit.runtime import Runtime
from daemonkit.transport import AgentStream, Dialer
from skyrack.v1 import agent_pb2

log = logging.getLogger(__name__)

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
REFUSED_BACKOFF_S = 10.0
TELEMETRY_BATCH = 500
TELEMETRY_INTERVAL_S = 5.0
OUTBOX_MAX = 10_000


class Agent(Protocol):
    """What a daemon gives to its session. None of these may block or wait for the controller."""

    kind: agent_pb2.AgentKind.ValueType
    version: str

    async def inventory(self) -> agent_pb2.Inventory: ...

    def desired_changed(self, mirror: desired.Mirror, changed: set[str]) -> None:
        """New desired state is held (and stored). Wake the reconciler; return at once."""

    def observe(self) -> list[agent_pb2.ObservedObject]:
        """Everything observed now, for a whole report."""

    async def run_task(self, task: agent_pb2.Task) -> agent_pb2.TaskResult:
        """Runs once; a SkyrackError becomes a failed result."""

    async def answer(self, query: agent_pb2.Query) -> bytes: ...


@dataclass(frozen=True)
class SessionSettings:
    node: str
    controllers: tuple[str, ...]  # "host:port" of the agent service
    boot_id: str


class Session:
    def __init__(self, agent: Agent, settings: SessionSettings, dialer: Dialer, ledger: Ledger, runtime: Runtime) -> None:
        self._agent, self._settings, self._dialer = agent, settings, dialer
        self._ledger, self._runtime = ledger, runtime
        self._controllers = list(settings.controllers)
        self._outbox: asyncio.Queue[agent_pb2.AgentMessage] = asyncio.Queue(OUTBOX_MAX)
        self._report_seq = 0
        self._epoch = 0
        self._spool_wake = asyncio.Event()
        self._running: set[str] = set()
        self._jobs: asyncio.TaskGroup
        self.mirror = desired.Mirror()
        self.connected = asyncio.Event()

    async def restore(self) -> None:
        """Loads what the ledger holds and hands it to the agent: it can work before any controller answers."""
        self._epoch = await self._ledger.highest_epoch()
        self.mirror = desired.Mirror.restore(*await self._ledger.load_desired())
        self._agent.desired_changed(self.mirror, set(self.mirror.objects))

    def report(self, objects: Sequence[agent_pb2.ObservedObject], *, whole: bool = False) -> None:
        """Queues observed state for the controller. Without a session it is dropped: the next one starts with a whole."""
        if not self.connected.is_set():
            return
        self._report_seq += 1
        report = agent_pb2.Report(
            seq=self._report_seq, epoch=self.mirror.epoch, generation=self.mirror.generation, whole=whole, objects=objects
        )
        self._put(agent_pb2.AgentMessage(report=report))

    async def spool(self, samples: Sequence[agent_pb2.Sample]) -> None:
        """Keeps usage samples durably; they reach the controller whenever it can be reached."""
        await self._ledger.spool(samples)
        self._spool_wake.set()

    def _put(self, message: agent_pb2.AgentMessage) -> None:
        try:
            self._outbox.put_nowait(message)
        except asyncio.QueueFull:
            log.warning("outbox full, ending the session")
            self.connected.clear()

    # ---- dialling

    async def run(self) -> None:
        """Until cancelled. Tasks of a session that broke go on, and their results go out in the next."""
        async with asyncio.TaskGroup() as self._jobs:
            await self._dial_for_ever()

    async def _dial_for_ever(self) -> None:
        backoff_s, turn, hint = BACKOFF_FIRST_S, 0, ""
        while True:
            address = hint or self._controllers[turn % len(self._controllers)]
            turn, hint = (turn, "") if hint else (turn + 1, "")
            try:
                await self._converse(address)
                backoff_s = BACKOFF_FIRST_S
            except NotLeader as error:
                hint = error.leader if error.leader != address else ""
            except (Forbidden, Unauthenticated) as error:
                log.error("refused by the controller", extra={"controller": address, "why": error.message})
                backoff_s = REFUSED_BACKOFF_S
            except SkyrackError as error:
                if self.connected.is_set():
                    backoff_s = BACKOFF_FIRST_S
                log.info("no session", extra={"controller": address, "why": error.message})
            self.connected.clear()
            if not hint:
                await asyncio.sleep(self._runtime.jitter_s(backoff_s))
                backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def _converse(self, address: str) -> None:
        stream = await self._dialer.dial(address)
        try:
            await stream.send(agent_pb2.AgentMessage(hello=await self._hello()))
            welcome = await self._welcome(await stream.receive())
            log.info("session", extra={"controller": address, "epoch": self._epoch})
            await self._talk(stream, welcome)
        finally:
            await stream.close()

    async def _hello(self) -> agent_pb2.Hello:
        return agent_pb2.Hello(
            kind=self._agent.kind, node=self._settings.node, version=self._agent.version, highest_epoch=self._epoch,
            boot_id=self._settings.boot_id, inventory=await self._agent.inventory(),
            desired_epoch=self.mirror.epoch, desired_generation=self.mirror.generation, desired_hash=self.mirror.hash(),
        )  # fmt: skip

    async def _welcome(self, message: agent_pb2.ControllerMessage) -> agent_pb2.Welcome:
        if message.WhichOneof("body") != "welcome":
            raise Unavailable("the controller did not begin with a welcome")
        await self._admit(message.epoch)
        if message.welcome.controllers:
            self._controllers = list(message.welcome.controllers)
        return message.welcome

    async def _admit(self, epoch: int) -> None:
        """Errors: Fenced for an older epoch. A newer one is remembered durably before anything of it is obeyed."""
        if epoch < self._epoch:
            raise Fenced(f"epoch {epoch} is older than {self._epoch}")
        if epoch > self._epoch:
            await self._ledger.raise_epoch(epoch)
            self._epoch = epoch

    # ---- talking

    async def _talk(self, stream: AgentStream, welcome: agent_pb2.Welcome) -> None:
        while not self._outbox.empty():
            self._outbox.get_nowait()
        self.connected.set()
        self.report(self._agent.observe(), whole=True)
        for result in await self._ledger.results():
            self._put(agent_pb2.AgentMessage(task_result=result))
        interval_s = max(welcome.heartbeat_interval_ms, 100) / 1000
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send_all(stream))
                group.create_task(self._beat(interval_s))
                group.create_task(self._ship())
                group.create_task(self._receive_all(stream))
        except* SkyrackError as several:
            raise several.exceptions[0] from None

    async def _send_all(self, stream: AgentStream) -> None:
        while self.connected.is_set():
            await stream.send(await self._outbox.get())
        raise Unavailable("outbox overflow")

    async def _beat(self, interval_s: float) -> None:
        last = await self._agent.inventory()
        while True:
            await asyncio.sleep(interval_s)
            beat = agent_pb2.Heartbeat()
            beat.wall_time.FromNanoseconds(int(self._runtime.clock.wall_s() * 1e9))
            current = await self._agent.inventory()
            if current != last:
                beat.inventory.CopyFrom(current)
                last = current
            self._put(agent_pb2.AgentMessage(heartbeat=beat))

    async def _ship(self) -> None:
        """Sends the spool in batches, one in flight; an acknowledgement (or a second's silence) wakes the next."""
        incarnation, after = await self._ledger.incarnation(), 0
        while True:
            self._spool_wake.clear()
            samples = await self._ledger.spooled(after, TELEMETRY_BATCH)
            if samples:
                telemetry = agent_pb2.Telemetry(incarnation=incarnation, samples=samples)
                self._put(agent_pb2.AgentMessage(telemetry=telemetry))
            try:
                async with asyncio.timeout(TELEMETRY_INTERVAL_S):
                    await self._spool_wake.wait()
            except TimeoutError:
                continue

    async def _receive_all(self, stream: AgentStream) -> None:
        while True:
            message = await stream.receive()
            await self._admit(message.epoch)
            match message.WhichOneof("body"):
                case "desired":
                    await self._take_desired(message.epoch, message.desired)
                case "task":
                    self._jobs.create_task(self._run_task(message.task))
                case "query":
                    self._jobs.create_task(self._answer(message.query))
                case "report_ack":
                    await self._ledger.forget_tasks(message.report_ack.task_ids)
                case "telemetry_ack":
                    await self._ledger.drop_spooled(message.telemetry_ack.seq)
                    self._spool_wake.set()

    async def _take_desired(self, epoch: int, delta: agent_pb2.DesiredState) -> None:
        try:
            changed = self.mirror.apply(epoch, delta)
        except desired.DesiredMismatch as error:
            self._put(agent_pb2.AgentMessage(resync=agent_pb2.Resync(why=error.message)))
            return
        self._agent.desired_changed(self.mirror, changed)
        stored = {key: self.mirror.bodies.get(key) for key in changed}
        await self._ledger.save_desired(self.mirror.epoch, self.mirror.generation, stored)

    async def _run_task(self, task: agent_pb2.Task) -> None:
        if task.task_id in self._running:
            return
        fresh, result = await self._ledger.begin_task(task.task_id)
        if fresh:
            self._running.add(task.task_id)
            try:
                result = await self._agent.run_task(task)
            except SkyrackError as error:
                result = agent_pb2.TaskResult(ok=False, reason=error.reason, fault=error.message)
            finally:
                self._running.discard(task.task_id)
        elif result is None:
            result = agent_pb2.TaskResult(ok=False, reason="INTERRUPTED", fault="the agent ended while it ran this")
        result.task_id = task.task_id
        await self._ledger.end_task(result)
        self._put(agent_pb2.AgentMessage(task_result=result))

    async def _answer(self, query: agent_pb2.Query) -> None:
        answer = agent_pb2.Answer(query_id=query.query_id, ok=True)
        try:
            answer.body = await self._agent.answer(query)
        except SkyrackError as error:
            answer.ok, answer.fault = False, error.message
        self._put(agent_pb2.AgentMessage(answer=answer))
