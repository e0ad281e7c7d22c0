"""A consensus store in memory, for simulation and tests: `kv.Kv` without etcd, sockets or threads.

One `MemoryStore` is the whole store, its quorum included; each controller has a `MemoryKv` with a `Link` of its own to it. A
request under way may be delayed, lost, refused, or held: a held one lands when the link is mended (and one that met no quorum
when that returns), long after its caller was told Unavailable, as a request can that waits in a socket's buffer. What is
lost, and when, is the test's to say. Nothing here is random and all times are the loop's, so a run can be repeated.

Deliveries and ends of leases run in the context in which the store was made, not in the caller's: a test that stops one
controller's tasks stops neither the network nor the others.
"""

from __future__ import annotations

import asyncio
import contextvars
from bisect import bisect_left, insort
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from controllerd.leadership.kv import (
    Change,
    Compacted,
    Created,
    Delete,
    Health,
    Impossible,
    KeyValue,
    Page,
    Put,
    TxnResult,
)
from daemonkit.errors import SkyrackError, Unavailable

T = TypeVar("T")

CALL_TIMEOUT_S = 1.0
TTL_MIN_S = 2  # as etcd's, with its default election timeout
QUOTA_BYTES = 2 << 30
REQUEST_BYTES_MAX = 3 << 19  # as etcd's

Told = Callable[[SkyrackError], None]


@dataclass
class _Lease:
    ttl_s: int
    deadline_s: float
    keys: dict[str, None] = field(default_factory=dict)


class _Watcher:
    """One watch; `deliver` gets what matches. It may be closed before its request reaches the store."""

    def __init__(self, prefix: str, from_revision: int, deliver: Callable[[list[Change]], None]) -> None:
        self.prefix, self.from_revision, self.deliver = prefix, from_revision, deliver
        self.closed = False

    def tell(self, changes: Sequence[Change]) -> None:
        mine = [c for c in changes if c.key.startswith(self.prefix) and c.revision >= self.from_revision]
        if mine and not self.closed:
            self.deliver(mine)


class MemoryStore:
    """Keys, revisions and leases, and what it takes to lose one's trust in them."""

    def __init__(self, bytes_max: int = QUOTA_BYTES, members: int = 3) -> None:
        self.revision = 1
        self.calls = 0  # served so far
        self._bytes_max, self._members = bytes_max, members
        self._kept: dict[str, KeyValue] = {}
        self._order: list[str] = []  # the keys, ascending
        self._history: list[tuple[Change, ...]] = [()]  # one item a revision, from `_compacted` + 1 on
        self._compacted = 0
        self._bytes = 0  # of what is kept, old values included
        self._leases: dict[int, _Lease] = {}
        self._last_lease = 0
        self._watchers: dict[_Watcher, None] = {}
        self._quorum = True
        self._waiting: list[Callable[[], None]] = []
        self._context = contextvars.copy_context()

    # ---- what tests do to it, and see of it

    def lose_quorum(self) -> None:
        """Calls wait; leases do not end meanwhile, since nobody could agree on it."""
        self._quorum = False

    def regain_quorum(self) -> None:
        """Each lease begins anew, as under a new leader of etcd; what waited is done now, though its caller may be gone."""
        self._quorum = True
        for number, lease in self._leases.items():
            self._prolong(number, lease)
        waiting, self._waiting = self._waiting, []
        for serve in waiting:
            serve()

    def get(self, key: str) -> KeyValue | None:
        """What is there now, told at once and whatever the links do."""
        return self._kept.get(key)

    # ---- serving

    def serve(self, act: Callable[[], T], reply: Callable[[T | SkyrackError], None], needs_quorum: bool) -> None:
        def run() -> None:
            self.calls += 1
            try:
                reply(act())
            except SkyrackError as error:
                reply(error)

        if self._quorum or not needs_quorum:
            run()
        else:
            self._waiting.append(run)

    def later(self, delay_s: float, act: Callable[..., None], *args: Any) -> None:
        """On the store's own behalf, whoever the caller is."""
        asyncio.get_running_loop().call_later(delay_s, act, *args, context=self._context)

    def txn(self, conditions: Sequence[Created], changes: Sequence[Put | Delete], look: Sequence[str]) -> TxnResult:
        """Errors: Impossible, Unavailable; nothing was changed then."""
        if sum(len(change.value) for change in changes if isinstance(change, Put)) > REQUEST_BYTES_MAX:
            raise Impossible("the request is too large")
        if all(self._create_revision(c.key) == c.revision for c in conditions):
            self._commit(changes)
            return TxnResult(True, self.revision)
        return TxnResult(False, self.revision, tuple(self._kept.get(key) for key in look))

    def range(self, first: str, end: str, limit: int) -> Page:
        keys = self._between(first, end)
        shown = keys[:limit] if limit else keys
        return Page(tuple(self._kept[key] for key in shown), self.revision, len(shown) < len(keys))

    def grant(self, ttl_s: int) -> int:
        self._last_lease += 1
        lease = self._leases[self._last_lease] = _Lease(max(ttl_s, TTL_MIN_S), 0.0)
        self._prolong(self._last_lease, lease)
        return self._last_lease

    def keep_alive(self, number: int) -> float:
        lease = self._leases.get(number)
        if lease is None:
            return 0.0
        self._prolong(number, lease)
        return float(lease.ttl_s)

    def revoke(self, number: int) -> None:
        lease = self._leases.pop(number, None)
        if lease is not None:
            self._commit([Delete(key) for key in lease.keys])

    def attach(self, watcher: _Watcher) -> None:
        """Tells it what it missed. Errors: Compacted."""
        if watcher.from_revision <= self._compacted:
            raise Compacted(f"revision {watcher.from_revision} is not kept any more")
        missed = self._history[watcher.from_revision - self._compacted - 1 :]
        if not watcher.closed:
            self._watchers[watcher] = None
            watcher.tell([change for changes in missed for change in changes])

    def detach(self, watcher: _Watcher) -> None:
        watcher.closed = True
        self._watchers.pop(watcher, None)

    def compact(self, revision: int) -> None:
        if revision > self._compacted:
            del self._history[: revision - self._compacted]
            self._compacted = min(revision, self.revision)
            live = sum(len(key) + len(kept.value) for key, kept in self._kept.items())
            self._bytes = live + sum(len(c.key) + len(c.value or b"") for changes in self._history for c in changes)

    def health(self) -> Health:
        answering = self._members if self._quorum else (self._members - 1) // 2
        return Health(self._bytes, self._bytes_max, self._bytes > self._bytes_max, self._members, answering)

    # ---- inside

    def _create_revision(self, key: str) -> int:
        kept = self._kept.get(key)
        return kept.create_revision if kept else 0

    def _between(self, first: str, end: str) -> list[str]:
        if not end:
            return [first] if first in self._kept else []
        return self._order[bisect_left(self._order, first) : bisect_left(self._order, end)]

    def _commit(self, changes: Sequence[Put | Delete]) -> None:
        """Errors: Unavailable, and nothing was changed, for a lease that is gone and when the store is full."""
        puts = [change for change in changes if isinstance(change, Put)]
        if any(put.lease and put.lease not in self._leases for put in puts):
            raise Unavailable("the lease is gone")
        if puts and self._bytes > self._bytes_max:
            raise Unavailable("the store is full")
        made = [change for one in changes for change in self._make(one, self.revision + 1)]
        if made:
            self.revision += 1
            self._history.append(tuple(made))
            self._bytes += sum(len(c.key) + len(c.value or b"") for c in made)
            for watcher in list(self._watchers):
                watcher.tell(made)

    def _make(self, change: Put | Delete, revision: int) -> list[Change]:
        if isinstance(change, Delete):
            return [self._delete(key, revision) for key in self._between(change.key, change.end)]
        before = self._kept.get(change.key)
        if before is None:
            insort(self._order, change.key)
        elif before.lease in self._leases:
            self._leases[before.lease].keys.pop(change.key, None)
        if change.lease:
            self._leases[change.lease].keys[change.key] = None
        created = before.create_revision if before else revision
        self._kept[change.key] = KeyValue(change.key, change.value, created, revision, change.lease)
        return [Change(change.key, change.value, revision)]

    def _delete(self, key: str, revision: int) -> Change:
        gone = self._kept.pop(key)
        del self._order[bisect_left(self._order, key)]
        if gone.lease in self._leases:
            self._leases[gone.lease].keys.pop(key, None)
        return Change(key, None, revision)

    def _prolong(self, number: int, lease: _Lease) -> None:
        lease.deadline_s = asyncio.get_running_loop().time() + lease.ttl_s
        self.later(lease.ttl_s, self._expire, number, lease.deadline_s)

    def _expire(self, number: int, deadline_s: float) -> None:
        lease = self._leases.get(number)
        if lease is not None and lease.deadline_s == deadline_s and self._quorum:
            self.revoke(number)


class Link:
    """The way between one controller and the store. All may be set at any time; `lose_...` is asked once a call."""

    def __init__(self, later: Callable[..., None]) -> None:
        self.delay_s = 0.0  # one way
        self.lose_request: Callable[[], bool] = lambda: False  # nothing is done, Unavailable is told
        self.lose_reply: Callable[[], bool] = lambda: False  # it is done, Unavailable is told
        self._later = later
        self._up, self._held = True, False
        self._under_way: list[Callable[[], None]] = []
        self._told: dict[Told, None] = {}

    def cut(self) -> None:
        """Breaks calls and watches, and refuses new ones until `mend`."""
        self._up = False
        self._under_way.clear()
        for tell in list(self._told):
            tell(Unavailable("connection reset"))

    def hold(self) -> None:
        """Nothing gets through and nobody is told: calls run into their timeout, watches fall silent."""
        self._held = True

    def mend(self) -> None:
        """What was held gets through now."""
        self._up, self._held = True, False
        under_way, self._under_way = self._under_way, []
        for arrive in under_way:
            arrive()

    def carry(self, arrive: Callable[[], None]) -> None:
        self._later(self.delay_s, self._pass, arrive)

    def _pass(self, arrive: Callable[[], None]) -> None:
        if not self._up:
            return
        if self._held:
            self._under_way.append(arrive)
        else:
            arrive()

    def attach(self, tell: Told) -> None:
        """`tell` hears when the link is cut. Errors: Unavailable when it is."""
        if not self._up:
            raise Unavailable("connection refused")
        self._told[tell] = None

    def detach(self, tell: Told) -> None:
        self._told.pop(tell, None)


class MemoryKv:
    """One controller's client. See `kv.Kv`."""

    def __init__(self, store: MemoryStore, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._store, self._timeout_s = store, timeout_s
        self.link = Link(store.later)

    async def txn(self, conditions: Sequence[Created], changes: Sequence[Put | Delete], look: Sequence[str] = ()) -> TxnResult:
        return await self._call(lambda: self._store.txn(conditions, changes, look))

    async def range(self, first: str, end: str = "", limit: int = 0) -> Page:
        return await self._call(lambda: self._store.range(first, end, limit))

    async def grant(self, ttl_s: int) -> int:
        return await self._call(lambda: self._store.grant(ttl_s))

    async def keep_alive(self, lease: int) -> float:
        return await self._call(lambda: self._store.keep_alive(lease))

    async def revoke(self, lease: int) -> None:
        await self._call(lambda: self._store.revoke(lease))

    async def compact(self, revision: int) -> None:
        await self._call(lambda: self._store.compact(revision))

    async def health(self) -> Health:
        return await self._call(self._store.health, needs_quorum=False)

    async def close(self) -> None:
        self.link.cut()

    async def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[list[Change], None]:
        arrived: asyncio.Queue[list[Change] | SkyrackError] = asyncio.Queue()
        under_way: deque[list[Change]] = deque()  # in order, also when the link's delay shrinks

        def deliver(changes: list[Change]) -> None:
            under_way.append(changes)
            self.link.carry(lambda: arrived.put_nowait(under_way.popleft()))

        watcher = _Watcher(prefix, from_revision, deliver)
        self.link.attach(arrived.put_nowait)
        try:
            await self._call(lambda: self._store.attach(watcher), needs_quorum=False)
            while True:
                item = await arrived.get()
                if isinstance(item, SkyrackError):
                    raise item
                yield item
        finally:
            self._store.detach(watcher)
            self.link.detach(arrived.put_nowait)

    async def _call(self, act: Callable[[], T], needs_quorum: bool = True) -> T:
        answer: asyncio.Future[T | SkyrackError] = asyncio.get_running_loop().create_future()

        def tell(outcome: T | SkyrackError) -> None:
            if not answer.done():
                answer.set_result(outcome)

        def reply(outcome: T | SkyrackError) -> None:
            lost = self.link.lose_reply()
            self.link.carry(lambda: tell(Unavailable("connection reset") if lost else outcome))

        lost = self.link.lose_request()
        self.link.attach(tell)
        try:
            if lost:
                self.link.carry(lambda: tell(Unavailable("connection reset")))
            else:
                self.link.carry(lambda: self._store.serve(act, reply, needs_quorum))
            await asyncio.wait([answer], timeout=self._timeout_s)
            outcome = answer.result() if answer.done() else Unavailable("no answer in time")
        finally:
            self.link.detach(tell)
        if isinstance(outcome, SkyrackError):
            raise outcome
        return outcome
