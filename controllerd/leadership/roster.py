"""Keeps this controller registered in the consensus store, and knows which others are.

A registration lies on a lease, so one whose controller is gone goes by itself. It is written anew when it changed, or is so
old that its clock says nothing any more; a controller whose clock differs is named in the log, once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from prometheus_client import Gauge

from controllerd.leadership import key
from controllerd.leadership.kv import Change, Compacted, Kv, Put
from controllerd.leadership.member import Member
from controllerd.leadership.news import News
from daemonkit import metrics
from daemonkit.errors import Unavailable
from daemonkit.runtime import Runtime

log = logging.getLogger(__name__)

CLOCK_OFFSET_S = Gauge(
    "skyrack_cluster_clock_offset_seconds", "how far a controller's clock is ahead of this one's", ["controller"],
    registry=metrics.REGISTRY,
)  # fmt: skip

MEMBER_TTL_S = 10
REFRESH_INTERVAL_S = 2.0
SAME_AGE_MAX_S = 10.0  # an unchanged registration is written again when it is so old
REREAD_INTERVAL_S = 60.0  # a watch can fall silent without breaking
RETRY_S = 2.0
CLOCK_OFFSET_MAX_S = 1.0
CLOCK_SAMPLES = 3  # a registration that came late says too little


class Roster:
    def __init__(self, kv: Kv, me: Callable[[], Member], runtime: Runtime) -> None:
        self._kv, self._me, self._runtime = kv, me, runtime
        self.members: News[Mapping[str, Member]] = News({})
        self.clock_offsets_s: dict[str, float] = {}  # by name: how far another's clock is ahead of ours
        self._offsets_s: dict[str, deque[float]] = {}
        self._lease = 0
        self._said: Member | None = None
        self._registering: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until cancelled; then this controller's registration is taken back."""
        try:
            async with asyncio.TaskGroup() as group:
                self._registering = group.create_task(self._register())
                group.create_task(self._watch())
        finally:
            await self._take_back()

    async def withdraw(self) -> None:
        """Takes back this controller's registration, for good; the others are still watched."""
        if self._registering is not None:
            self._registering.cancel()
            await asyncio.wait([self._registering])
        await self._take_back()

    async def _take_back(self) -> None:
        lease, self._lease = self._lease, 0
        if lease:
            with suppress(Unavailable):
                await self._kv.revoke(lease)

    # ---- this one

    async def _register(self) -> None:
        while True:
            try:
                await self._refresh()
            except Unavailable as error:
                self._said = None
                log.info("not registered", extra={"why": error.message})
            await asyncio.sleep(REFRESH_INTERVAL_S)

    async def _refresh(self) -> None:
        """Errors: Unavailable."""
        if not self._lease or not await self._kv.keep_alive(self._lease):
            self._said = None
            self._lease = await self._kv.grant(MEMBER_TTL_S)
        me, said = self._me(), self._said
        same = said is not None and replace(me, wall_s=said.wall_s) == said
        if said is None or not same or abs(me.wall_s - said.wall_s) >= SAME_AGE_MAX_S:
            await self._kv.txn([], [Put(key.MEMBERS + me.name, me.encode(), self._lease)])
            self._said = me

    # ---- the others

    async def _watch(self) -> None:
        while True:
            try:
                async with asyncio.timeout(REREAD_INTERVAL_S):
                    await self._read_and_follow()
            except (TimeoutError, Compacted):
                pass
            except Unavailable:
                await asyncio.sleep(self._runtime.jitter_s(RETRY_S))

    async def _read_and_follow(self) -> None:
        page = await self._kv.range(key.MEMBERS, key.after(key.MEMBERS))
        present = [Member.decode(item.value) for item in page.items]
        self._set({member.name: member for member in present})
        async for changes in self._kv.watch(key.MEMBERS, page.revision + 1):
            self._set(_changed(self.members.value, changes))
            self._compare_clocks(Member.decode(c.value) for c in changes if c.value is not None)

    def _set(self, members: Mapping[str, Member]) -> None:
        self.members.set(members)
        for name in self._offsets_s.keys() - members.keys():
            del self._offsets_s[name]
            if self.clock_offsets_s.pop(name, None) is not None:
                CLOCK_OFFSET_S.remove(name)

    def _compare_clocks(self, just_written: Iterable[Member]) -> None:
        for member in just_written:
            seen = self._offsets_s.setdefault(member.name, deque(maxlen=CLOCK_SAMPLES))
            seen.append(member.wall_s - self._runtime.clock.wall_s())
            if len(seen) == CLOCK_SAMPLES:
                offset_s = max(seen)  # the one that took the shortest way
                before_s = self.clock_offsets_s.get(member.name, 0.0)
                self.clock_offsets_s[member.name] = offset_s
                CLOCK_OFFSET_S.labels(member.name).set(offset_s)
                if abs(offset_s) > CLOCK_OFFSET_MAX_S >= abs(before_s):
                    log.warning("clocks differ", extra={"controller": member.name, "ahead_s": round(offset_s, 1)})


def _changed(members: Mapping[str, Member], changes: Iterable[Change]) -> dict[str, Member]:
    result = dict(members)
    for change in changes:
        name = change.key.removeprefix(key.MEMBERS)
        if change.value is None:
            result.pop(name, None)
        else:
            result[name] = Member.decode(change.value)
    return result
