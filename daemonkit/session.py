"""An agent's session with the leading controller, the same for computed, networkd and storaged.

Guarantees: messages of a lower epoch than the highest one seen (durably) are refused; desired state is stored before the
agent sees it; a task runs at most once an id; a session begins with a whole report; task results are resent until
acknowledged; telemetry is shipped from the durable spool, exactly once. Without a controller the agent goes on with the
desired state it holds; the session dials for ever, politely. Nothing that an agent's code raises ends the session loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from daemonkit import desired
from daemonkit.errors import (
    ConfigError,
    DeadlineExceeded,
    Fenced,
    Forbidden,
    NotLeader,
    SkyrackError,
    Unauthenticated,
    Unavailable,
)
from daemonkit.ledger import Ledger
from daemonkit.runtime import Runtime
from daemonkit.transport import AgentStream, Dialer
from skyrack.v1 import agent_pb2

log = logging.getLogger(__name__)

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
REFUSED_BACKOFF_S = 10.0
GOOD_SESSION_S = 5.0  # one that lasted as long starts the backoff afresh
SPREAD_S = 0.002  # a node: after a leader's end all agents dial within nodes x this
WELCOME_TIMEOUT_S = 10.0  # from dialling
HEARTBEAT_INTERVAL_S = 10.0  # where the welcome names none
INVENTORY_INTERVAL_S = 2.0  # that a change of the machine, or of its clock, waits at the longest until it is told
CLOCK_STEP_S = 1.0  # by which the wall clock was set
CLOCK_INTERVAL_S = 600.0  # the clocks are told so often, also by an agent that has so much to say that it need not beat
ACK_TIMEOUT_S = 30.0  # a controller that takes a report in silence for so long is left
TELEMETRY_BATCH = 500
TELEMETRY_INTERVAL_S = 15.0  # silence after which a batch is sent again
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
        """Runs once, cancelled at the task's deadline; a SkyrackError becomes a failed result."""

    async def answer(self, query: agent_pb2.Query) -> bytes: ...


@dataclass(frozen=True)
class SessionSettings:
    node: str
    controllers: tuple[str, ...]  # "host:port" of the agent service
    boot_id: str

    def __post_init__(self) -> None:
        if not self.controllers:
            raise ConfigError("no controllers are configured")


class _Outbox:
    """What goes up in one session. Whoever fills it never waits; when it is full the session ends."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[agent_pb2.AgentMessage] = asyncio.Queue(OUTBOX_MAX)
        self._overflow = asyncio.Event()
        self.filled_s = 0.0  # of the loop's clock: when something was put in last

    def put(self, message: agent_pb2.AgentMessage) -> None:
        self.filled_s = asyncio.get_running_loop().time()
        try:
            self._queue.put_nowait(message)
        except asyncio.QueueFull:
            self._overflow.set()

    async def drain(self, stream: AgentStream) -> None:
        while True:
            await stream.send(await self._queue.get())

    async def watch(self) -> None:
        await self._overflow.wait()
        raise Unavailable(f"the controller does not read: {OUTBOX_MAX} messages wait")


class Session:
    def __init__(self, agent: Agent, settings: SessionSettings, dialer: Dialer, ledger: Ledger, runtime: Runtime) -> None:
        self._agent, self._settings, self._dialer = agent, settings, dialer
        self._ledger, self._runtime = ledger, runtime
        self._controllers = list(settings.controllers)
        self._nodes = 0
        self._outbox: _Outbox | None = None
        self._began_s: float | None = None  # of the loop's clock: when the session was welcomed
        self._report_seq = 0
        self._unacknowledged: dict[int, float] = {}  # report seq -> when it was queued, oldest first
        self._epoch = 0
        self._spool_wake = asyncio.Event()
        self._telemetry_acked_seq = 0
        self._telemetry_acked = asyncio.Event()
        self._running: set[str] = set()
        self._jobs: asyncio.TaskGroup
        self._mirror_in_doubt = False
        self.mirror = desired.Mirror()
        self.connected = asyncio.Event()

    async def restore(self) -> None:
        """Loads what the ledger holds and hands it to the agent: it can work before any controller answers."""
        self._epoch = await self._ledger.highest_epoch()
        await self._reload()

    async def _reload(self) -> None:
        stored = desired.Mirror.restore(*await self._ledger.load_desired())
        keys = stored.bodies.keys() | self.mirror.bodies.keys()
        changed = {key for key in keys if stored.bodies.get(key) != self.mirror.bodies.get(key)}
        self._mirror_in_doubt = False
        self.mirror.become(stored)
        self._agent.desired_changed(self.mirror, changed)

    def report(
        self,
        objects: Sequence[agent_pb2.ObservedObject],
        *,
        whole: bool = False,
        seen: tuple[int, int] | None = None,
    ) -> None:
        """Queues observed state for the controller. Without a session it is dropped: the next one starts with a whole.

        `seen`: (epoch, generation) of the desired state that the observation followed; that of the mirror now if None.
        """
        if self._outbox is None:
            return
        self._report_seq += 1
        epoch, generation = seen or (self.mirror.epoch, self.mirror.generation)
        report = agent_pb2.Report(seq=self._report_seq, epoch=epoch, generation=generation, whole=whole, objects=objects)
        self._unacknowledged[report.seq] = asyncio.get_running_loop().time()
        self._put(agent_pb2.AgentMessage(report=report))

    async def spool(self, samples: Sequence[agent_pb2.Sample]) -> None:
        """Keeps usage samples durably; they reach the controller whenever it can be reached."""
        await self._ledger.spool(samples)
        self._spool_wake.set()

    def _put(self, message: agent_pb2.AgentMessage) -> None:
        if self._outbox is not None:
            self._outbox.put(message)

    # ---- dialling

    async def run(self) -> None:
        """Until cancelled. Tasks of a session that broke go on, and their results go out in the next."""
        async with asyncio.TaskGroup() as self._jobs:
            await self._dial_for_ever()

    async def _dial_for_ever(self) -> None:
        us = asyncio.current_task()
        backoff_s, turn, hint, last_why = BACKOFF_FIRST_S, 0, "", ""
        while True:
            address = hint or self._controllers[turn % len(self._controllers)]
            turn += not hint
            # In a task of its own: Python 3.11's task groups leave a cancellation counted on a task whose children failed,
            # and later timeouts of that task would then not be told from cancellations.
            error, lasted_s = await self._jobs.create_task(self._attempt(address))
            if us is not None and us.cancelling():  # the attempt may have failed just when it was cancelled
                raise asyncio.CancelledError
            level = logging.DEBUG if error.message == last_why else logging.INFO
            log.log(level, "no session", extra={"controller": address, "why": error.message, "lasted_s": round(lasted_s, 1)})
            last_why = error.message
            # One step aside at a time: two standbys that point at each other must not keep us running between them.
            hint = error.leader if isinstance(error, NotLeader) and not hint else ""
            if hint and hint != address:  # one that names itself does not serve yet: there again, but after a pause
                continue
            if isinstance(error, Forbidden | Unauthenticated):
                log.error("refused by the controller", extra={"controller": address, "why": error.message})
                wait_s = REFUSED_BACKOFF_S
            elif lasted_s >= GOOD_SESSION_S:
                turn = 1  # the leader has named itself first, and then who leads after it
                wait_s, backoff_s = max(BACKOFF_FIRST_S, self._nodes * SPREAD_S), BACKOFF_FIRST_S
            else:
                wait_s, backoff_s = backoff_s, min(backoff_s * 2, BACKOFF_MAX_S)
            await asyncio.sleep(self._runtime.jitter_s(wait_s))

    async def _attempt(self, address: str) -> tuple[SkyrackError, float]:
        """One session from dial to end. Gives why it ended, and how many seconds it lasted from its welcome on."""
        self._began_s = None
        why: Exception = Unavailable("the session ended")
        try:
            await self._converse(address)
        except Exception as error:
            why = error
        finally:
            self.connected.clear()
            self._outbox = None
        return _reason(why), 0.0 if self._began_s is None else asyncio.get_running_loop().time() - self._began_s

    async def _converse(self, address: str) -> None:
        try:
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                stream = await self._dialer.dial(address)
        except TimeoutError:
            raise Unavailable("nobody answers the dial") from None
        try:
            hello, welcome = await self._greet(stream)
            log.info("session", extra={"controller": address, "epoch": self._epoch})
            await self._talk(stream, hello, welcome)
        finally:
            await stream.close()

    async def _greet(self, stream: AgentStream) -> tuple[agent_pb2.Hello, agent_pb2.Welcome]:
        if self._mirror_in_doubt:
            await self._reload()
        hello = agent_pb2.Hello(
            kind=self._agent.kind, node=self._settings.node, version=self._agent.version, highest_epoch=self._epoch,
            boot_id=self._settings.boot_id, inventory=await self._agent.inventory(),
            desired_epoch=self.mirror.epoch, desired_generation=self.mirror.generation, desired_hash=self.mirror.hash(),
        )  # fmt: skip
        self._read_clocks(hello)
        try:
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                await stream.send(agent_pb2.AgentMessage(hello=hello))
                return hello, await self._welcome(await stream.receive())
        except TimeoutError:
            raise Unavailable("no welcome in time") from None

    async def _welcome(self, message: agent_pb2.ControllerMessage) -> agent_pb2.Welcome:
        if message.WhichOneof("body") != "welcome":
            raise Unavailable("the controller did not begin with a welcome")
        await self._admit(message.epoch)
        self._controllers = list(dict.fromkeys([*message.welcome.controllers, *self._settings.controllers]))
        self._nodes = message.welcome.nodes
        return message.welcome

    async def _admit(self, epoch: int) -> None:
        """Errors: Fenced for an older epoch. A newer one is remembered durably before anything of it is obeyed."""
        if epoch < self._epoch:
            raise Fenced(f"epoch {epoch} is older than {self._epoch}")
        if epoch > self._epoch:
            await self._ledger.raise_epoch(epoch)
            self._epoch = epoch

    # ---- talking

    async def _talk(self, stream: AgentStream, hello: agent_pb2.Hello, welcome: agent_pb2.Welcome) -> None:
        self._outbox = outbox = _Outbox()
        self._unacknowledged.clear()
        self._began_s = asyncio.get_running_loop().time()
        self.connected.set()
        self.report(self._agent.observe(), whole=True)
        for result in await self._ledger.results():
            self._put(agent_pb2.AgentMessage(task_result=result))
        async with asyncio.TaskGroup() as group:
            group.create_task(outbox.drain(stream))
            group.create_task(outbox.watch())
            group.create_task(self._beat(hello, outbox, welcome.heartbeat_interval_ms / 1000 or HEARTBEAT_INTERVAL_S))
            group.create_task(self._ship())
            group.create_task(self._receive_all(stream, outbox))

    async def _beat(self, hello: agent_pb2.Hello, outbox: _Outbox, interval_s: float) -> None:
        """Says that we live after a silence of the interval, and at once what has changed at this machine."""
        loop = asyncio.get_running_loop()
        last, clocks, clocks_s = hello.inventory, _wall_ahead_s(hello), loop.time()
        while True:
            silent_s = loop.time() - outbox.filled_s
            await asyncio.sleep(min(max(interval_s - silent_s, 0.01), INVENTORY_INTERVAL_S))
            beat = agent_pb2.Heartbeat()
            current = await self._agent.inventory()
            if current != last:
                beat.inventory.CopyFrom(current)
                last = current
            self._read_clocks(beat)
            set_anew = abs(_wall_ahead_s(beat) - clocks) >= CLOCK_STEP_S or loop.time() - clocks_s >= CLOCK_INTERVAL_S
            if set_anew or beat.HasField("inventory") or loop.time() - outbox.filled_s >= interval_s:
                clocks, clocks_s = _wall_ahead_s(beat), loop.time()
                self._put(agent_pb2.AgentMessage(heartbeat=beat))
            oldest_s = next(iter(self._unacknowledged.values()), None)
            if oldest_s is not None and loop.time() - oldest_s > ACK_TIMEOUT_S:
                raise Unavailable("the controller does not acknowledge reports")

    def _read_clocks(self, message: agent_pb2.Hello | agent_pb2.Heartbeat) -> None:
        message.boottime_us = int(self._runtime.clock.boottime_s() * 1e6)
        message.wall_time.FromMicroseconds(int(self._runtime.clock.wall_s() * 1e6))

    async def _ship(self) -> None:
        """The spool in batches, one in flight; it goes again only after a long silence, or in the next session."""
        incarnation = await self._ledger.incarnation()
        while True:
            self._spool_wake.clear()
            samples = await self._ledger.spooled(0, TELEMETRY_BATCH)
            if samples:
                self._put(agent_pb2.AgentMessage(telemetry=agent_pb2.Telemetry(incarnation=incarnation, samples=samples)))
                await self._wait_telemetry_ack(samples[-1].seq)
            else:
                await self._spool_wake.wait()

    async def _wait_telemetry_ack(self, seq: int) -> None:
        try:
            async with asyncio.timeout(TELEMETRY_INTERVAL_S):
                while self._telemetry_acked_seq < seq:
                    self._telemetry_acked.clear()
                    await self._telemetry_acked.wait()
        except TimeoutError:
            log.info("telemetry not acknowledged", extra={"seq": seq})

    async def _receive_all(self, stream: AgentStream, outbox: _Outbox) -> None:
        while True:
            message = await stream.receive()
            await self._admit(message.epoch)
            match message.WhichOneof("body"):
                case "desired":
                    await self._take_desired(message.epoch, message.desired)
                case "task":
                    self._start_task(message.task)
                case "query":
                    self._start(self._answer(message.query, outbox))
                case "report_ack":
                    await self._take_report_ack(message.report_ack)
                case "telemetry_ack":
                    await self._take_telemetry_ack(message.telemetry_ack)

    async def _take_desired(self, epoch: int, delta: agent_pb2.DesiredState) -> None:
        """Errors: DesiredMismatch when a whole state contradicts its own hash: asking once more would not help."""
        following = dataclasses.replace(self.mirror)
        try:
            changed = following.apply(epoch, delta)
        except desired.DesiredMismatch as error:
            if not delta.base and not delta.same:
                raise
            self._put(agent_pb2.AgentMessage(resync=agent_pb2.Resync(why=error.message)))
            return
        self._mirror_in_doubt = True  # until we know that it is stored; if we are cut off here, the ledger tells
        stored = {key: following.bodies.get(key) for key in changed}
        await self._ledger.save_desired(following.epoch, following.generation, stored)
        self._mirror_in_doubt = False
        self.mirror.become(following)
        self._agent.desired_changed(self.mirror, changed)

    async def _take_report_ack(self, ack: agent_pb2.ReportAck) -> None:
        for seq in [seq for seq in self._unacknowledged if seq <= ack.seq]:
            del self._unacknowledged[seq]
        await self._ledger.forget_tasks(ack.task_ids)

    async def _take_telemetry_ack(self, ack: agent_pb2.TelemetryAck) -> None:
        if ack.incarnation == await self._ledger.incarnation():  # another's cursor says nothing about our samples
            await self._ledger.drop_spooled(ack.seq)
            self._telemetry_acked_seq = max(self._telemetry_acked_seq, ack.seq)
            self._telemetry_acked.set()

    # ---- jobs, which outlive a session

    def _start(self, job: Coroutine[Any, Any, None]) -> None:
        self._jobs.create_task(job)

    def _start_task(self, task: agent_pb2.Task) -> None:
        if task.task_id not in self._running:
            self._running.add(task.task_id)
            until_s = self._runtime.clock.boottime_s() + task.remaining_ms / 1000 if task.HasField("remaining_ms") else None
            self._start(self._run_task(task, until_s))

    async def _run_task(self, task: agent_pb2.Task, until_s: float | None) -> None:
        """`until_s`: its deadline, of this machine's boot-time clock."""
        try:
            fresh, result = await self._ledger.begin_task(task.task_id)
            if result is None:
                interrupted = _failed("INTERRUPTED", "the agent ended while it ran this")
                result = await self._perform(task, until_s) if fresh else interrupted
                result.task_id = task.task_id
                await self._record(result)
        except SkyrackError as error:
            log.error("task not begun", extra={"task": task.task_id, "why": error.message})
            result = _failed(error.reason, error.message)
            result.task_id = task.task_id
        finally:
            self._running.discard(task.task_id)
        self._put(agent_pb2.AgentMessage(task_result=result))

    async def _perform(self, task: agent_pb2.Task, until_s: float | None) -> agent_pb2.TaskResult:
        left_s = None if until_s is None else until_s - self._runtime.clock.boottime_s()
        try:
            if left_s is not None and left_s <= 0:
                raise DeadlineExceeded("came after its deadline")
            async with asyncio.timeout(left_s):
                return await self._agent.run_task(task)
        except (TimeoutError, DeadlineExceeded) as error:
            return _failed("DEADLINE", str(error) or "not done by its deadline")
        except SkyrackError as error:
            return _failed(error.reason, error.message)
        except Exception as error:
            log.error("task failed by a bug", exc_info=error, extra={"task": task.task_id})
            return _failed("FAILED", "internal error of the agent")

    async def _record(self, result: agent_pb2.TaskResult) -> None:
        """What was done is told to the controller even if the disk would not have it."""
        try:
            await self._ledger.end_task(result)
        except SkyrackError as error:
            log.error("task result not recorded", extra={"task": result.task_id, "why": error.message})

    async def _answer(self, query: agent_pb2.Query, outbox: _Outbox) -> None:
        """Into the session that asked; the next one would not know the question."""
        answer = agent_pb2.Answer(query_id=query.query_id, ok=True)
        try:
            answer.body = await self._agent.answer(query)
        except SkyrackError as error:
            answer.ok, answer.fault = False, error.message
        except Exception as error:
            log.error("query failed by a bug", exc_info=error, extra={"query": query.query_id})
            answer.ok, answer.fault = False, "internal error of the agent"
        outbox.put(agent_pb2.AgentMessage(answer=answer))


def _wall_ahead_s(message: agent_pb2.Hello | agent_pb2.Heartbeat) -> float:
    """Of the boot-time clock, in what was told."""
    return (message.wall_time.ToMicroseconds() - message.boottime_us) / 1e6


def _failed(reason: str, fault: str) -> agent_pb2.TaskResult:
    return agent_pb2.TaskResult(ok=False, reason=reason, fault=fault)


def _reason(why: Exception) -> SkyrackError:
    """The error of ours in `why`, which may be a task group's; bugs are logged and become Unavailable."""
    found = list(why.exceptions) if isinstance(why, ExceptionGroup) else [why]
    ours = [error for error in found if isinstance(error, SkyrackError)]
    for error in found:
        if not isinstance(error, SkyrackError):
            log.error("session broken by a bug", exc_info=error)
    ours.sort(key=lambda error: isinstance(error, Unavailable))  # the others say more
    return ours[0] if ours else Unavailable("internal error of the agent")
