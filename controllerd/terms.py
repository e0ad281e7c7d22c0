"""A controller's process through its terms.

A term is one stretch of leading: a `Controller` is built for it, answers its callers while it lasts, and is torn down. `Alone`
has one, as long as the process; `Contender` has as many as it wins elections, and follows between them. The file of the state
belongs to the term's database, or else to the replica, never to both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from controllerd import divergence
from controllerd.config import ControllerConfig
from controllerd.controller import Controller, described
from controllerd.leadership.commit_log import CommitLog, LocalLog
from controllerd.leadership.elector import Elector, Term
from controllerd.leadership.entry import Diverged
from controllerd.leadership.follower import FetchSnapshot, Follower
from controllerd.leadership.kv import Health, Kv
from controllerd.leadership.lease import LeaseSettings
from controllerd.leadership.member import Member
from controllerd.leadership.replicated_log import ReplicatedLog
from controllerd.store.replica import Replica
from daemonkit.errors import Conflict
from daemonkit.runtime import Runtime

# Builds what leads for one term, with that log.
Build = Callable[[CommitLog], Controller]
# Answers callers while a term lasts.
Answer = Callable[[Controller], AbstractAsyncContextManager[None]]


async def live(controller: Controller, answer: Answer, ending: asyncio.Event) -> None:
    """One term, until `ending` or cancelled. Errors: what ended it earlier (Fenced, Unavailable, ConfigError).

    Callers are let in last and sent away first.
    """
    await controller.open()
    try:
        work = asyncio.ensure_future(controller.run())
        try:
            await _over(work, controller.at_work)
            if not work.done():
                async with answer(controller):
                    await _over(work, ending)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)  # also when we are cancelled nobody is left to wonder about it
        if not work.cancelled():
            work.result()
    finally:
        await controller.close()


async def _over(work: asyncio.Future[None], event: asyncio.Event) -> None:
    """Returns when the work has ended, or `event` is set."""
    waiting = asyncio.ensure_future(event.wait())
    both: list[asyncio.Future[Any]] = [work, waiting]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


class Alone:
    """The only controller: it leads from start to end."""

    def __init__(self, config: ControllerConfig, runtime: Runtime) -> None:
        self._me, self._runtime = described(config), runtime
        self._began, self._over = asyncio.Event(), asyncio.Event()

    @property
    def leader(self) -> Member | None:
        return self._me if self._began.is_set() and not self._over.is_set() else None

    async def changed(self) -> None:
        """Returns when `leader` is another one, or none, than at the call."""
        await (self._over if self._began.is_set() else self._began).wait()

    def members(self) -> Mapping[str, Member]:
        return {self._me.name: replace(self._me, wall_s=self._runtime.clock.wall_s())}

    def clock_offsets_s(self) -> Mapping[str, float]:
        return {}

    async def transfer(self, successor: str) -> None:
        """Errors: Conflict."""
        raise Conflict("this cloud has one controller ([cluster] etcd is not set): there is none to hand over to")

    async def health(self) -> Health | None:
        return None

    async def run(self, build: Build, answer: Answer) -> None:
        """Until cancelled. Errors: ConfigError; Unavailable when the store fails."""
        controller = build(LocalLog())
        self._began.set()
        try:
            await live(controller, answer, asyncio.Event())
        finally:
            self._over.set()


class Contender:
    """One controller of several."""

    def __init__(self, config: ControllerConfig, state: Path, kv: Kv, fetch_snapshot: FetchSnapshot, runtime: Runtime) -> None:
        """`state`: the database file; its directory is this process's alone."""
        self._runtime, self._me, self._kv, self._state = runtime, described(config), kv, state
        self._settings = LeaseSettings(config.cluster.lease_ttl_s, config.cluster.lease_margin_s)
        self._replica = Replica(state, runtime)
        self._controller: Controller | None = None
        self._follower = Follower(kv, self._replica, fetch_snapshot, runtime, state.with_name("incoming.db"))
        self._elector = Elector(kv, self._now, self._follower, self._settings, runtime)

    @property
    def leader(self) -> Member | None:
        return self._elector.leader

    async def changed(self) -> None:
        """Returns when `leader` is another one, or none, than at the call."""
        await self._elector.changed()

    @property
    def leads(self) -> bool:
        return self._controller is not None

    @property
    def applied_seq(self) -> int:
        """Last log entry in this controller's copy."""
        return self._controller.database.seq if self._controller else self._replica.position.seq

    def members(self) -> Mapping[str, Member]:
        """Every controller that is there, this one included, by name."""
        return {**self._elector.members(), self._me.name: self._now()}

    def clock_offsets_s(self) -> Mapping[str, float]:
        """How far each other controller's clock is ahead of this one's."""
        return self._elector.clock_offsets_s()

    async def transfer(self, successor: str) -> None:
        """Begins to hand over; "" = to any other. Errors: Conflict, NotFound, NotLeader, Unavailable."""
        await self._elector.resign(successor)

    async def leave(self) -> bool:
        """Before the process ends: hands over and waits a little; whether another controller leads. Then cancel `run`."""
        return await self._elector.leave()

    async def health(self) -> Health | None:
        """Of the consensus store. Errors: Unavailable."""
        return await self._kv.health()

    async def run(self, build: Build, answer: Answer) -> None:
        """Until cancelled. Errors: ConfigError, Diverged, StuckTerm: the process must not go on."""
        try:
            await self._elector.run(lambda term: self._lead(term, build, answer))
        except (Diverged, BaseExceptionGroup) as error:
            divergence.note(self._state, error)
            raise

    async def _lead(self, term: Term, build: Build, answer: Answer) -> None:
        """In a task of its own, as the elector calls it."""
        log = ReplicatedLog(self._kv, term.leader_revision, term.lease, self._settings, self._runtime, self._follower.time)
        controller = build(log)
        self._controller = controller
        try:
            await live(controller, answer, term.ending)
        finally:
            self._controller = None

    def _now(self) -> Member:
        return replace(self._me, applied_seq=self.applied_seq, wall_s=self._runtime.clock.wall_s())
