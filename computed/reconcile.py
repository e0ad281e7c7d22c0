"""Brings each server to its desired state: look, plan, do, look again, tell.

Every server has at most one pass at work at a time; passes of different servers run side by side. What wakes a pass: a new
desired state, an event of the hypervisor, an alarm it set itself (a retry, a grace that ends), and a slow sweep over
everything. Events say only *that* something changed: the state is read anew each time, so lost or reordered ones do no harm.

A running guest is touched only to do what its desired state says. A domain or files of a server that no desired state names
are told as foreign and left alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from computed import metric
from computed.drivers.base import Hypervisor, Store, Watcher
from computed.plan import (
    Attach,
    CutPower,
    Define,
    Detach,
    Facts,
    FetchImage,
    MakeDisks,
    PressPowerButton,
    RemoveFiles,
    Resume,
    Start,
    Step,
    Trouble,
    Undefine,
    foreign,
    leftover,
    observe,
    plan,
)
from computed.spec import Domain, DomainState, Observed, ObservedState, Power, Server
from daemonkit import failpoint
from daemonkit.errors import InvalidArgument, SkyrackError, Unavailable
from daemonkit.runtime import Runtime

log = logging.getLogger(__name__)

ROUNDS_MAX = 6  # plans carried out in one pass before others get their turn
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 30.0
INTERFACE_RETRY_S = 0.1
CALM_S = 60.0  # after so long without, a step's rest is short again

# How long a step rests after it was done before it may be done again: (first, longest); it doubles in between.
RESTS_S: dict[type[Step], tuple[float, float]] = {
    Start: (1.0, 30.0),
    PressPowerButton: (10.0, 10.0),
    Resume: (0.3, 2.0),
    Attach: (1.0, 10.0),
    Detach: (5.0, 10.0),
}


class NotYet(SkyrackError):
    """Something another daemon makes is not there yet."""

    reason = "NOT_YET"


@dataclass
class Memory:
    """What is remembered of a server between passes. Times are of the event loop, milestones wall times; all in seconds."""

    tell: bool = False  # the controller waits for a word on the newest desired state
    done: dict[Step, tuple[float, float]] = field(default_factory=dict)  # step -> (when, rest)
    failures: int = 0
    refused: InvalidArgument | None = None  # its desired state makes no sense: nothing is done
    trouble: Trouble | None = None  # of the last step that was tried
    grace_ends: float | None = None
    ran: bool = False  # seen running while RUNNING was wanted
    milestones: dict[str, float] = field(default_factory=dict)
    alarm: asyncio.TimerHandle | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)  # its desired state changed under a pass

    def rests_until(self, step: Step) -> float:
        when, rest = self.done.get(step, (0.0, 0.0))
        return when + rest

    def note(self, step: Step, now: float) -> None:
        if type(step) not in RESTS_S:
            return
        first, longest = RESTS_S[type(step)]
        when, rest = self.done.get(step, (0.0, 0.0))
        grown = first if now - when > CALM_S or not rest else min(rest * 2, longest)
        self.done[step] = (now, grown)


class Reconciler:
    def __init__(
        self,
        hypervisor: Hypervisor,
        store: Store,
        runtime: Runtime,
        publish: Callable[[str, Observed], None],
        *,
        starts_max: int,
        stop_grace_s: float,
        pass_interval_s: float,
    ) -> None:
        """`publish(server id, observed)` is called for each change, and after each new desired state."""
        self._hypervisor, self._store, self._runtime, self._publish = hypervisor, store, runtime, publish
        self._starts = asyncio.Semaphore(starts_max)
        self._stop_grace_s, self._pass_interval_s = stop_grace_s, pass_interval_s
        self._desired: dict[str, Server] = {}
        self._memory: dict[str, Memory] = {}
        self._dirty: set[str] = set()
        self._busy: set[str] = set()
        self._sweep = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self.observed: dict[str, Observed] = {}
        self.surveyed = asyncio.Event()  # the first sweep is over: `observed` holds every server

    # ---- what wakes it

    def desire(self, changed: Mapping[str, Server | InvalidArgument | None]) -> None:
        """New desired state of these servers: None = no longer named, an error = it makes no sense. Returns at once."""
        for server_id, server in changed.items():
            memory = self._memory.setdefault(server_id, Memory())
            self._desired.pop(server_id, None)
            memory.refused = server if isinstance(server, InvalidArgument) else None
            if isinstance(server, Server):
                self._desired[server_id] = server
                memory.ran = memory.ran and server.power is Power.RUNNING
            memory.tell, memory.failures, memory.trouble = True, 0, None
            memory.done.clear()
            memory.news.set()
        self._store.keep_images(list(self._desired.values()))
        for server_id in changed:
            self.wake(server_id)

    def wanted(self) -> list[str]:
        return list(self._desired)

    def server(self, server_id: str) -> Server | None:
        return self._desired.get(server_id)

    def wake(self, server_id: str) -> None:
        self._dirty.add(server_id)
        if self._group is not None and server_id not in self._busy:
            self._busy.add(server_id)
            self._group.create_task(self._settle(server_id))

    def _wake_later(self, server_id: str, memory: Memory, delay_s: float) -> None:
        if memory.alarm is not None:
            memory.alarm.cancel()
        memory.alarm = asyncio.get_running_loop().call_later(max(delay_s, 0.01), self.wake, server_id)

    async def run(self) -> None:
        """Until cancelled."""
        watcher = Watcher(changed=self.wake, connected=self._sweep.set)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._hypervisor.run(watcher))
                group.create_task(self._sweep_for_ever())
                for server_id in sorted(self._dirty):
                    self.wake(server_id)
        finally:
            self._group = None
            for memory in self._memory.values():
                if memory.alarm is not None:
                    memory.alarm.cancel()

    async def _sweep_for_ever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._pass_interval_s):
                    await self._sweep.wait()
            except TimeoutError:
                pass
            self._sweep.clear()
            try:
                there = await self._hypervisor.domains()
            except SkyrackError as error:
                log.info("no sweep", extra={"why": error.message})
                continue
            self._survey({domain.server_id: domain for domain in there})
            strangers = {domain.server_id for domain in there} | self._store.servers() | self.observed.keys()
            for server_id in sorted(strangers | self._desired.keys()):
                self.wake(server_id)

    def _survey(self, there: Mapping[str, Domain]) -> None:
        """What is there of servers that were not looked at yet, before anything is done to them. The pass that follows tells
        it, whatever was said of them while nobody could look."""
        for server_id, server in self._desired.items():
            if server_id not in self.observed:
                memory = self._memory[server_id]
                facts = self._facts_with(server, memory, there.get(server_id))
                self.observed[server_id] = observe(server, facts, None)
                memory.tell = True
        self.surveyed.set()

    # ---- one pass

    async def _settle(self, server_id: str) -> None:
        try:
            while server_id in self._dirty:
                self._dirty.discard(server_id)
                server, memory = self._desired.get(server_id), self._memory.get(server_id)
                if memory is not None and memory.refused is not None:
                    self._tell(server_id, Observed(ObservedState.FAILED, fault=memory.refused.message))
                elif server is None or memory is None:
                    await self._look_at_stranger(server_id)
                else:
                    await self._pass(server, memory)
        finally:
            self._busy.discard(server_id)

    async def _look_at_stranger(self, server_id: str) -> None:
        try:
            domain = await self._hypervisor.look(server_id)
        except SkyrackError:
            return  # a sweep follows as soon as the hypervisor answers
        if domain is not None and not domain.ours:
            return
        if domain is not None:
            self._tell(server_id, foreign(domain))
        elif server_id in self._store.servers():
            if server_id not in self.observed:
                log.warning("files of a server that nobody wants", extra={"server": server_id})
            self._tell(server_id, leftover())
        elif server_id not in self._desired:
            if server_id in self.observed and self.observed[server_id].state is not ObservedState.GONE:
                self._publish(server_id, Observed(ObservedState.GONE, foreign=True))
            self.observed.pop(server_id, None)
            self._memory.pop(server_id, None)

    async def _pass(self, server: Server, memory: Memory) -> None:
        memory.news.clear()
        retry_s: float | None
        try:
            facts, retry_s = await self._converge(server, memory)
        except Exception as error:
            memory.trouble, retry_s = self._trouble(server, memory, error)
            try:
                facts = await self._facts(server, memory)
            except SkyrackError:
                self._tell_unknown(server, memory.trouble)
                return self._wake_later(server.server_id, memory, retry_s)
        if retry_s is not None:
            self._wake_later(server.server_id, memory, retry_s)
        if self._desired.get(server.server_id) is server:
            self._tell(server.server_id, observe(server, facts, memory.trouble, tuple(memory.milestones.items())))
        return None

    def _trouble(self, server: Server, memory: Memory, error: Exception) -> tuple[Trouble, float]:
        """What to tell, and in how many seconds to try again."""
        if not isinstance(error, SkyrackError):
            log.error("a pass broke", exc_info=error, extra={"server": server.server_id})
            return Trouble("internal error of the compute node"), RETRY_MAX_S
        if isinstance(error, NotYet):
            return Trouble(error.message, passing=True), INTERFACE_RETRY_S
        memory.failures += 1
        retry_s = min(RETRY_FIRST_S * 2 ** (memory.failures - 1), RETRY_MAX_S)
        log.warning("not as desired", extra={"server": server.server_id, "why": error.message, "retry_s": retry_s})
        return Trouble(error.message, passing=isinstance(error, Unavailable)), retry_s

    async def _converge(self, server: Server, memory: Memory) -> tuple[Facts, float | None]:
        """Carries out plans until nothing is left to do now. Gives the facts, and in how many seconds to come again."""
        facts = await self._facts(server, memory)
        for _ in range(ROUNDS_MAX):
            now = asyncio.get_running_loop().time()
            steps = plan(server, facts)
            due = [step for step in steps if memory.rests_until(step) <= now]
            if not due or self._desired.get(server.server_id) is not server:
                break
            for step in due:
                await self._do(step, server, memory)
                if memory.news.is_set():
                    break
            facts = await self._facts(server, memory)
            memory.trouble, memory.failures = None, 0
        steps = plan(server, facts)
        if not steps:  # else what could not be done is resting, and its trouble still stands
            memory.trouble, memory.failures = None, 0
        waits = [memory.rests_until(step) for step in steps]
        waits += [memory.grace_ends] if memory.grace_ends is not None else []
        return facts, min(waits) - asyncio.get_running_loop().time() if waits else None

    async def _facts(self, server: Server, memory: Memory) -> Facts:
        return self._facts_with(server, memory, await self._hypervisor.look(server.server_id))

    def _facts_with(self, server: Server, memory: Memory, domain: Domain | None) -> Facts:
        self._remember(server, memory, domain)
        ended = domain is not None and domain.state is DomainState.SHUTOFF and domain.guest_ended
        now = asyncio.get_running_loop().time()
        return Facts(
            domain=domain,
            files=self._store.files(server),
            digest=self._hypervisor.digest(server),
            switched_off=memory.ran and ended,
            grace_over=memory.grace_ends is not None and memory.grace_ends <= now,
        )

    def _remember(self, server: Server, memory: Memory, domain: Domain | None) -> None:
        running = domain is not None and domain.state is DomainState.RUNNING
        if running and server.power is Power.RUNNING:
            memory.ran = True
        if not running or server.power is Power.RUNNING:
            memory.grace_ends = None

    # ---- doing

    async def _do(self, step: Step, server: Server, memory: Memory) -> None:
        began = asyncio.get_running_loop().time()
        memory.note(step, began)
        name = type(step).__name__
        failpoint.hit(f"computed.before.{name}")
        match step:
            case FetchImage():
                await self._fetch_image(server, memory)
            case MakeDisks():
                self._milestone(memory, "image")
                await self._store.make_disks(server)
                self._milestone(memory, "disk")
            case Define():
                await self._hypervisor.define(server)
                self._milestone(memory, "defined")
            case Start():
                await self._start(server, memory)
            case PressPowerButton():
                await self._hypervisor.press_power_button(server.server_id)
                memory.grace_ends = memory.grace_ends or began + self._stop_grace_s
            case CutPower():
                await self._hypervisor.cut_power(server.server_id)
            case Resume():
                await self._hypervisor.resume(server.server_id)
                await asyncio.sleep(RESTS_S[Resume][0])  # so long it takes to see whether the disk answers now
            case Attach(disk):
                await self._hypervisor.attach(server.server_id, disk)
            case Detach(export_name):
                await self._hypervisor.detach(server.server_id, export_name)
            case Undefine():
                await self._hypervisor.undefine(server.server_id)
            case RemoveFiles():
                await self._store.remove(server.server_id)
        failpoint.hit(f"computed.after.{name}")
        metric.LAUNCH_S.labels(name).observe(asyncio.get_running_loop().time() - began)

    async def _fetch_image(self, server: Server, memory: Memory) -> None:
        """May take minutes; given up as soon as something else is wanted of the server."""
        fetch = asyncio.ensure_future(self._store.fetch_image(server))
        news = asyncio.ensure_future(memory.news.wait())
        try:
            await asyncio.wait({fetch, news}, return_when=asyncio.FIRST_COMPLETED)
            if fetch.done():
                fetch.result()
        finally:
            for future in (fetch, news):
                future.cancel()
            await asyncio.gather(fetch, news, return_exceptions=True)

    async def _start(self, server: Server, memory: Memory) -> None:
        if missing := self._hypervisor.missing_interfaces(server):
            memory.done.pop(Start(), None)
            raise NotYet(f"waits for network interface {', '.join(missing)}")
        async with self._starts:
            await self._hypervisor.start(server.server_id)
        self._milestone(memory, "running")

    def _milestone(self, memory: Memory, name: str) -> None:
        if name == "image" or (name == "running" and name in memory.milestones):  # another launch
            memory.milestones.clear()
        memory.milestones[name] = self._runtime.clock.wall_s()

    # ---- telling

    def _tell(self, server_id: str, observed: Observed) -> None:
        memory = self._memory.get(server_id)
        wanted = memory is not None and memory.tell
        if self.observed.get(server_id) != observed or wanted:
            self.observed[server_id] = observed
            if memory is not None:
                memory.tell = False
            self._publish(server_id, observed)

    def _tell_unknown(self, server: Server, trouble: Trouble) -> None:
        """The hypervisor does not answer: what was last seen of the server stays, a new one is being waited for."""
        memory = self._memory.get(server.server_id)
        if server.server_id not in self.observed and memory is not None and memory.tell:
            memory.tell = False
            self._publish(server.server_id, Observed(ObservedState.PENDING, fault=trouble.fault))
