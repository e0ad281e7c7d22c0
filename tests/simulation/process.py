"""A controller as a process on a machine of its own, in virtual time: killed, stopped, continued, started again.

A kill is SIGKILL to the letter: the process stops where it stands, for ever, and its files are what the next one finds, with
transactions half done in them.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar, cast

from controllerd.agents.blob import BlobStore
from controllerd.controller import Controller
from controllerd.leadership.member import Member
from controllerd.leadership.memory import Link, MemoryKv, MemoryStore
from controllerd.leadership.upkeep import Upkeep, UpkeepSettings
from controllerd.store import snapshot
from daemonkit.errors import NotLeader, Unavailable
from daemonkit.memory import MemoryNetwork
from daemonkit.runtime import InlineThreads, Runtime
from skyrack.testing.seat import Seat
from skyrack.testing.virtual import RepeatableLoop, VirtualClock

T = TypeVar("T")
KEPT_LOG = UpkeepSettings(keep_entries=200, urgent_entries=100)  # so few that who was away needs a snapshot
ANSWER_TIMEOUT_S = 8.0  # as the ping timeout: a call to a process that is stopped is given up


class ControllerProcess:
    """`kv`: None for a controller that is alone. `died`: the error that ended it, if one did."""

    def __init__(
        self, name: str, home: Path, network: MemoryNetwork, blobs: BlobStore, store: MemoryStore | None, rng: random.Random
    ) -> None:
        self.name, self.home = name, home
        self.address = f"{name}:7701"
        self.clock = VirtualClock()
        self.delay_s = 0.0  # of calls, one way
        self.lose: Callable[[], bool] = lambda: False  # a call, or its answer
        self._network, self._blobs, self._store, self._rng = network, blobs, store, rng
        self.wire: Callable[[Link], None] = lambda link: None  # how its way to the consensus store is, at each start
        self._lives: list[asyncio.Task[None]] = []
        self.process = ""  # of the present life, or the last one
        self._gone = asyncio.Event()
        self.others: dict[str, ControllerProcess] = {}
        self.alive = self.stopped = False
        self.died: BaseException | None = None
        self.seat: Seat
        self.kv: MemoryKv | None = None

    @property
    def _loop(self) -> RepeatableLoop:
        return cast(RepeatableLoop, asyncio.get_running_loop())

    def runtime(self) -> Runtime:
        rng = random.Random(self._rng.getrandbits(64))
        return Runtime(self.clock, rng, lambda _name, _workers: InlineThreads())

    # ---- its life

    async def bootstrap(self, admin_env: Path) -> None:
        await Seat(self.home, self.address, self._network, self._blobs, self.runtime()).bootstrap(admin_env)

    def start(self) -> None:
        self.alive, self._gone = True, asyncio.Event()
        self.process = f"{self.name}#{len(self._lives) + 1}"
        runtime = self.runtime()
        self.seat = Seat(self.home, self.address, self._network, self._blobs, runtime)
        work = [self.seat.run()]
        if self._store is not None:
            self.kv = MemoryKv(self._store)
            self.wire(self.kv.link)
            contender = self.seat.contend(self.kv, self._fetch_snapshot)
            upkeep = Upkeep(self.kv, _reclaim, lambda: contender.applied_seq, lambda: contender.leads, runtime, KEPT_LOG)
            work.append(upkeep.run())
        self._lives.append(self._loop.spawn(self.process, _together(work)))
        self._lives[-1].add_done_callback(self._ended)

    def _ended(self, life: asyncio.Task[None]) -> None:
        if not life.cancelled() and (error := life.exception()) is not None and life is self._lives[-1]:
            self.died = error

    def kill(self) -> None:
        self._loop.freeze(self.process)
        self.alive = self.stopped = False
        self._network.close(self.address)
        if self.kv is not None:
            self.kv.link.cut()
        self._gone.set()
        left = self.home.with_name(f"{self.name}-{len(self._lives)}")
        shutil.copytree(self.home, left, ignore=shutil.ignore_patterns("*-shm"))
        self.home = left

    def stop(self) -> None:
        """As by SIGSTOP."""
        self.stopped = True
        self._loop.freeze(self.process)

    def resume(self) -> None:
        self.stopped = False
        self._loop.thaw(self.process)

    async def end(self) -> None:
        """For the end of the world: nothing of it runs any more, not even what was killed."""
        if self.alive:
            self.kill()
        for number, life in enumerate(self._lives):
            self._loop.thaw(f"{self.name}#{number + 1}")
            life.cancel()
        await asyncio.wait(self._lives)

    # ---- what others ask of it

    async def ask(self, work: Callable[[Controller], Awaitable[T]]) -> T:
        """A call from elsewhere. Errors: NotLeader; Unavailable: it may have been done; what `work` raises."""
        await asyncio.sleep(self.delay_s)
        if not self.alive or self.lose():
            raise Unavailable("connection refused")
        done = self._loop.spawn(self.process, self._serve(work))
        gone = asyncio.ensure_future(self._gone.wait())
        await asyncio.wait([done, gone], timeout=ANSWER_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not done.done():
            raise Unavailable("no answer")
        await asyncio.sleep(self.delay_s)
        if self.lose():
            raise Unavailable("connection reset")
        return cast(T, done.result())

    async def _serve(self, work: Callable[[Controller], Awaitable[T]]) -> T:
        controller = self.seat.controller
        if controller is None:
            leader = self.seat.terms.leader
            raise NotLeader(leader.name if leader else "", 0)
        return await work(controller)

    async def _fetch_snapshot(self, member: Member, target: Path) -> None:
        async def take(controller: Controller) -> None:
            target.unlink(missing_ok=True)  # noqa: ASYNC240
            await snapshot.take(controller.database, target)

        await self.others[member.name].ask(take)


async def _together(work: list[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for one in work:
            group.create_task(one)


async def _reclaim() -> None:
    """Memory gives space back by itself."""
