"""Controllers on a consensus store in memory, under a virtual clock; each can be stopped like a process by SIGSTOP."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from controllerd.leadership.elector import Elector, Term
from controllerd.leadership.entry import Diverged, Entry, Kind
from controllerd.leadership.follower import Follower
from controllerd.leadership.lease import LeaseSettings
from controllerd.leadership.member import Member
from controllerd.leadership.memory import MemoryKv, MemoryStore
from controllerd.leadership.replicated_log import ReplicatedLog
from daemonkit.errors import Unavailable
from daemonkit.runtime import InlineThreads, Runtime
from skyrack.testing.virtual import RepeatableLoop, VirtualClock

T = TypeVar("T")
SETTINGS = LeaseSettings(ttl_s=3, margin_s=0.5)
WRITE_INTERVAL_S = 0.1


def loop() -> RepeatableLoop:
    running = asyncio.get_running_loop()
    assert isinstance(running, RepeatableLoop)
    return running


def run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=RepeatableLoop) as runner:
        return runner.run(work)


def begin(process: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    return loop().spawn(process, work)


@dataclass(frozen=True)
class Position:
    seq: int = 0
    epoch: int = 0
    cluster_id: str = ""


@dataclass
class MemoryCopy:
    """Entries as they were applied; `shelf` is where snapshots lie, by the path that was asked for."""

    shelf: dict[Path, MemoryCopy] = field(default_factory=dict)
    position: Position = field(default_factory=Position)
    entries: dict[int, Entry] = field(default_factory=dict)
    opened: bool = False
    snapshots: int = 0
    needed_schema: int = 0

    async def open(self) -> None:
        assert not self.opened
        self.opened = True

    async def close(self) -> None:
        assert self.opened
        self.opened = False

    async def apply(self, entries: Any) -> None:
        assert self.opened
        for entry in entries:
            if entry.seq == self.position.seq:
                if entry != self.entries[entry.seq]:
                    raise Diverged(f"entry {entry.seq} is not the one that this copy has")
            else:
                self.commit(entry)

    def commit(self, entry: Entry) -> None:
        if entry.seq != self.position.seq + 1 or entry.epoch < self.position.epoch:
            raise Diverged(f"entry {entry.seq} of epoch {entry.epoch} on {self.position}")
        self.entries[entry.seq] = entry
        cluster_id = entry.body.decode() if entry.kind == Kind.BARRIER else self.position.cluster_id
        self.position = Position(entry.seq, entry.epoch, cluster_id)

    async def install(self, snapshot: Path) -> None:
        assert self.opened
        whole = self.shelf.pop(snapshot)
        self.position, self.entries = whole.position, dict(whole.entries)
        self.snapshots += 1


class House:
    """The store, its controllers, and what was acknowledged by them: seq -> batch."""

    def __init__(self, seed: int = 1, names: str = "abc", ttl_s: int = 3) -> None:
        self.rng = random.Random(seed)
        self.store = MemoryStore()
        self.settings = LeaseSettings(ttl_s, 0.5)
        self.shelf: dict[Path, MemoryCopy] = {}
        self.acknowledged: dict[int, bytes] = {}
        self.controllers = {name: Controller(self, name) for name in names}

    @property
    def leading(self) -> list[Controller]:
        """Those that believe it now, by their own lease and the true time."""
        now_s = loop().time()
        return [c for c in self.controllers.values() if c.term is not None and c.term.lease.holds(now_s)]

    async def leader(self, within_s: float = 10.0) -> Controller:
        async with asyncio.timeout(within_s):
            while not self.leading:  # noqa: ASYNC110  time is virtual
                await asyncio.sleep(0.01)
        return self.leading[0]

    def start(self, *names: str) -> None:
        for name in names or self.controllers:
            self.controllers[name].start()

    async def end(self) -> None:
        for controller in self.controllers.values():
            controller.resume()
        try:
            await asyncio.gather(*(controller.stop() for controller in self.controllers.values()))
        finally:
            await asyncio.gather(*(controller.bury() for controller in self.controllers.values()))


class Controller:
    """A process that can die and be started again; its copy stays. While it leads it writes an entry now and then."""

    def __init__(self, house: House, name: str) -> None:
        self.house, self.name = house, name
        self.runtime = Runtime(VirtualClock(), random.Random(house.rng.random()), lambda _name, _n: InlineThreads())
        self.copy = MemoryCopy(house.shelf)
        self.terms: list[float] = []  # when each began
        self.reads = 0
        self.wall_offset_s = 0.0
        self.schema = 1
        self.wind_down_s = 0.0
        self.writing = True
        self.on_end: Callable[[], Coroutine[Any, Any, None]] = _nothing
        self.kv: MemoryKv
        self.follower: Follower
        self.elector: Elector
        self.term: Term | None = None
        self.task: asyncio.Task[None] | None = None
        self.process = ""
        self.dead: list[tuple[str, asyncio.Task[None]]] = []

    def bootstrap(self, cluster_id: str = "cloud") -> None:
        self.copy.position = Position(cluster_id=cluster_id)

    def me(self) -> Member:
        wall_s = self.runtime.clock.wall_s() + self.wall_offset_s
        return Member(self.name, f"{self.name}:7700", f"{self.name}:7701", "1", self.schema, self.copy.position.seq, wall_s)

    def start(self) -> None:
        self.kv = MemoryKv(self.house.store)
        self.kv.link.delay_s = 0.002
        self.follower = Follower(self.kv, self.copy, self.fetch_snapshot, self.runtime, Path(self.name))
        self.elector = Elector(self.kv, self.me, self.follower, self.house.settings, self.runtime)
        self.process = f"{self.name}.{len(self.dead)}"
        self.task = begin(self.process, self.elector.run(self.lead))

    def pause(self) -> None:
        """As SIGSTOP."""
        loop().freeze(self.process)

    def resume(self) -> None:
        if self.task is not None:
            loop().thaw(self.process)

    def kill(self) -> None:
        """As SIGKILL: nothing of the process does anything any more."""
        assert self.task is not None
        loop().freeze(self.process)
        self.kv.link.cut()
        self.dead.append((self.process, self.task))
        self.task = self.term = None
        self.copy.opened = False

    async def bury(self) -> None:
        """At the very end: lets the tasks of killed processes go; what they still say does not count."""
        for process, task in self.dead:
            task.cancel()
            loop().thaw(process)
        await asyncio.gather(*(task for _process, task in self.dead), return_exceptions=True)

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
            if not self.task.cancelled():
                self.task.result()

    async def fetch_snapshot(self, leader: Member, into: Path) -> None:
        await asyncio.sleep(0.05)
        source = self.house.controllers[leader.name]
        if source.term is None or not self.kv.link._up:
            raise Unavailable("no leader there")
        self.house.shelf[into] = MemoryCopy(self.house.shelf, source.copy.position, dict(source.copy.entries))

    # ---- leading

    async def lead(self, term: Term) -> None:
        assert not self.copy.opened
        self.copy.opened = True
        self.term = term
        self.terms.append(loop().time())
        try:
            await self._write_on(term)
            await asyncio.sleep(self.wind_down_s)
        finally:
            self.term = None
            self.copy.opened = False
            on_end, self.on_end = self.on_end, _nothing
            await on_end()

    async def _write_on(self, term: Term) -> None:
        log = ReplicatedLog(term.kv, term.leader_revision, term.lease, self.house.settings, self.runtime)
        epoch = log.next_epoch(self.copy.position.epoch)
        kind, body = Kind.BARRIER, self.copy.position.cluster_id.encode()
        while not term.ending.is_set():
            if not self.writing:
                await asyncio.sleep(WRITE_INTERVAL_S)
                continue
            now_s = self.runtime.clock.wall_s()
            entry = Entry(self.copy.position.seq + 1, kind, self.runtime.rng.randbytes(16), epoch, 1, 0, body, now_s)
            await log.append(entry)
            self.copy.commit(entry)
            self.house.acknowledged[entry.seq] = entry.batch
            kind, body = Kind.CHANGES, b""
            await asyncio.sleep(self.runtime.jitter_s(2 * WRITE_INTERVAL_S))
            self._read(log)

    def _read(self, log: ReplicatedLog) -> None:
        log.assert_leading()
        assert self.house.leading == [self], "two believe that they lead"
        newest = next(reversed(self.house.acknowledged))
        assert self.copy.position.seq >= newest, "a read that misses what was acknowledged"
        self.reads += 1


async def _nothing() -> None:
    return None


def errors_of(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [one for inner in error.exceptions for one in errors_of(inner)]
    return [error]


def told(task: asyncio.Task[Any]) -> list[type[BaseException]]:
    error = task.exception()
    return [type(one) for one in errors_of(error)] if error else []


Until = Callable[[], bool]


async def until(what: Until, within_s: float = 20.0) -> float:
    """Waits; gives the seconds that it took."""
    begun_s = loop().time()
    async with asyncio.timeout(within_s):
        while not what():  # noqa: ASYNC110  time is virtual
            await asyncio.sleep(0.01)
    return loop().time() - begun_s


@asynccontextmanager
async def house(names: str = "abc", blank: str = "", seed: int = 1) -> AsyncIterator[House]:
    h = House(seed, names)
    for name, controller in h.controllers.items():
        if name not in blank:
            controller.bootstrap()
    h.start()
    try:
        yield h
    finally:
        await h.end()
