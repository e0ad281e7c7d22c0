"""Keeps this controller's copy of the state equal to the log, while another one leads.

Entries come by a watch; beside it a poll asks every second whether anything is new, since a watch can fall silent or behind
without breaking. What the log does not hold any more comes as a snapshot from the leader. A copy that cannot belong to this log
(another cloud's, ahead of it, another entry in the same slot) is never repaired silently: Diverged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from controllerd.leadership import key
from controllerd.leadership.copy import Copy
from controllerd.leadership.entry import Diverged, Entry, Unusable, decode
from controllerd.leadership.kv import Change, Compacted, Created, KeyValue, Kv
from controllerd.leadership.log_time import LogTime
from controllerd.leadership.member import Member
from controllerd.leadership.news import News
from daemonkit.errors import SkyrackError, Unavailable
from daemonkit.runtime import Runtime

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 1.0
PAGE_ENTRIES = 100  # one read of the log, and one transaction of the copy; an entry has at most half a MiB
SNAPSHOT_BACKOFF_FIRST_S = 0.2
SNAPSHOT_BACKOFF_MAX_S = 5.0

NEVER = Created(key.LEADER, -1)  # a condition that does not hold: the transaction is a look at several keys at one moment

FetchSnapshot = Callable[[Member, Path], Awaitable[object]]


class Behind(Unavailable):
    """The log does not hold what this copy lacks; only a snapshot can help."""

    reason = "BEHIND"


class Ahead(Unavailable):
    """This controller would migrate the state to what another one's software cannot read."""

    reason = "AHEAD"


@dataclass(frozen=True)
class Leader:
    """`revision`: of the leader key's creation, tells one term from the next."""

    member: Member = field(compare=False)
    revision: int


@dataclass(frozen=True)
class Scene:
    """What the consensus store says at one moment; `cluster_id` "" = no cloud lives in it yet."""

    leader: Leader | None
    successor: str
    cluster_id: str


class Follower:
    """`incoming`: where a snapshot is put while it comes."""

    def __init__(self, kv: Kv, copy: Copy, fetch_snapshot: FetchSnapshot, runtime: Runtime, incoming: Path) -> None:
        self._kv, self._copy, self._fetch_snapshot = kv, copy, fetch_snapshot
        self._runtime, self._incoming = runtime, incoming
        self._open = self._examined = False
        self.leader: News[Leader | None] = News(None)  # as last heard of
        self.time = LogTime(runtime.clock)  # the log's, also while this controller leads

    @property
    def cluster_id(self) -> str:
        return self._copy.position.cluster_id

    async def open(self) -> None:
        """Takes the file of the state, if it has not got it. Errors: ConfigError."""
        if not self._open:
            await self._copy.open()
            self._open, self._examined = True, False

    async def close(self) -> None:
        """Gives the file of the state to whoever leads now. A cancellation waits for it: nobody else may have it before."""
        if self._open:
            self._open = False
            closing = asyncio.ensure_future(self._copy.close())
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                await asyncio.wait([closing])
                raise

    async def look(self) -> Scene:
        """Errors: Unavailable; Diverged when the log is another cloud's: at the first look, or since a restore."""
        keys = (key.LEADER, key.SUCCESSOR, key.CLUSTER)
        leader, successor, cluster = (await self._kv.txn([NEVER], [], keys)).found
        self.leader.set(_leader(leader))
        self._check_cloud(_text(cluster))
        return Scene(self.leader.value, _text(successor), _text(cluster))

    def _check_cloud(self, cluster_id: str) -> None:
        """Errors: Unusable."""
        ours = self._copy.position.cluster_id
        if ours and cluster_id not in ("", ours):
            what = f"this copy is of cloud {ours}, the log of cloud {cluster_id}"
            raise Unusable(
                f"{what}: if that was restored from a backup, `skyrack-controllerd restore --from-leader` follows it"
            )

    # ---- what is in the log

    async def catch_up(self) -> int:
        """Applies all that is in the log; the store's revision when its end was read.

        Errors: Unavailable, of which Behind: a snapshot is needed; Diverged.
        """
        if not self._examined:
            await self._examine()
            self._examined = True
        while True:
            before_s = self._runtime.clock.boottime_s()
            page = await self._kv.range(key.slot(self._copy.position.seq + 1), key.after(key.LOG), PAGE_ENTRIES)
            await self._apply([(item.key, item.value) for item in page.items])
            if not page.more:
                self.time.complete(before_s)
                return page.revision

    async def check_all_can_follow(self) -> None:
        """Whether every controller that is there can read what this one would migrate to. Errors: Ahead, Unavailable."""
        needed = self._copy.needed_schema
        if needed:
            page = await self._kv.range(key.MEMBERS, key.after(key.MEMBERS))
            members = [Member.decode(item.value) for item in page.items]
            old = [f"{m.name} ({m.schema})" for m in members if m.schema < needed]
            if old:
                raise Ahead(f"it would migrate to what only software that knows schema {needed} reads: not {', '.join(old)}")

    async def _examine(self) -> None:
        """Whether the copy belongs to this log. Errors: Behind, Diverged, Unavailable."""
        position = self._copy.position
        if not position.cluster_id:
            raise Behind("this controller has no copy of the state yet")
        await self.look()  # whose cloud it is
        last = (await self._kv.range(key.slot(position.seq), key.after(key.LOG), 1)).items
        if last and key.seq_of(last[0].key) == position.seq:
            await self._copy.apply([decode(position.seq, last[0].value)])  # compared
        elif not last and (await self._kv.range(key.LOG, key.after(key.LOG), 1)).items:
            raise Diverged(f"this copy has entry {position.seq}, which the log has not")

    async def _apply(self, stored: Sequence[tuple[str, bytes]]) -> list[Entry]:
        """Those that the copy lacks, and gives them. Errors: Behind when there is a gap before them; Diverged."""
        done = self._copy.position.seq
        entries: list[Entry] = []
        for slot, value in stored:
            seq = key.seq_of(slot)
            if seq > done + 1:
                raise Behind(f"the log begins at entry {seq}, this copy ends at {done}")
            if seq == done + 1:
                entries.append(decode(seq, value))
                done = seq
        for first in range(0, len(entries), PAGE_ENTRIES):
            await self._copy.apply(entries[first : first + PAGE_ENTRIES])
        return entries

    # ---- following a leader

    async def follow(self) -> None:
        """Until nobody leads. Errors: Unavailable: nothing is known; Diverged."""
        while self.leader.value is not None:
            try:
                await self._tail(await self.catch_up() + 1)
            except Behind as why:
                await self._take_snapshot(why)
            except Compacted as why:
                log.info("the watch fell behind, reading the log anew", extra={"why": why.message})

    async def _tail(self, revision: int) -> None:
        """From `revision` of the store on, until nobody leads."""
        async with aclosing(self._kv.watch(key.ROOT, revision)) as watch:
            coming = asyncio.ensure_future(anext(watch))
            try:
                while self.leader.value is not None:
                    await asyncio.wait([coming], timeout=POLL_INTERVAL_S)
                    self.time.woke()
                    if not coming.done() or self.time.unknown_s > POLL_INTERVAL_S:
                        await self._poll(self.leader.value)
                    if coming.done():
                        changes = coming.result()
                        coming = asyncio.ensure_future(anext(watch))
                        await self._take(changes)
            finally:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)

    async def _poll(self, leader: Leader) -> None:
        """One call that reads nothing while nothing is new."""
        before_s = self._runtime.clock.boottime_s()
        unchanged = (Created(key.LEADER, leader.revision), Created(key.slot(self._copy.position.seq + 1), 0))
        result = await self._kv.txn(unchanged, [], [key.LEADER])
        if result.succeeded:
            self.time.complete(before_s)
        else:
            await self.catch_up()
            self.leader.set(_leader(result.found[0]))

    async def _take(self, changes: Sequence[Change]) -> None:
        stored = [(c.key, c.value) for c in changes if c.value is not None and c.key.startswith(key.LOG)]
        for entry in await self._apply(stored):
            self.time.seen(entry.now)
        for change in changes:
            if change.key == key.LEADER:
                known = self.leader.value
                if known is None or change.revision > known.revision:  # a poll may have been ahead
                    member = None if change.value is None else Member.decode(change.value)
                    self.leader.set(None if member is None else Leader(member, change.revision))

    async def _take_snapshot(self, why: Behind) -> None:
        """From whoever leads, as soon as one gives it; returns without one when nobody leads."""
        log.warning("a snapshot is needed", extra={"why": why.message})
        backoff_s = SNAPSHOT_BACKOFF_FIRST_S
        while (leader := (await self.look()).leader) is not None:
            try:
                await self._fetch_from(leader)
            except Diverged:
                raise
            except SkyrackError as error:
                log.warning("no snapshot", extra={"leader": leader.member.name, "why": error.message})
                await asyncio.sleep(self._runtime.jitter_s(backoff_s))
                backoff_s = min(2 * backoff_s, SNAPSHOT_BACKOFF_MAX_S)
            else:
                await self._copy.install(self._incoming)
                self._examined = False
                log.info("snapshot installed", extra={"leader": leader.member.name, "seq": self._copy.position.seq})
                return

    async def _fetch_from(self, leader: Leader) -> None:
        """Errors: of the fetch; Unavailable when another one leads meanwhile, or nobody: this one may be frozen; Diverged."""
        fetching = asyncio.ensure_future(self._fetch_snapshot(leader.member, self._incoming))
        try:
            await asyncio.wait([fetching], timeout=POLL_INTERVAL_S)
            while not fetching.done():
                with suppress(Unavailable):  # the snapshot does not come from there
                    await self.look()
                if self.leader.value != leader:
                    raise Unavailable("it leads no longer")
                await asyncio.wait([fetching], timeout=POLL_INTERVAL_S)
            fetching.result()
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)


def _leader(stored: KeyValue | None) -> Leader | None:
    return None if stored is None else Leader(Member.decode(stored.value), stored.create_revision)


def _text(stored: KeyValue | None) -> str:
    return "" if stored is None else stored.value.decode()
