"""Keeps the consensus store small: old log entries go, old revisions are forgotten, a full store is made to write again.

How much log stays is a choice between two ways to catch up: a controller that missed no more than what is kept reads the log,
another one gets a snapshot of the leader's state. Entries above what this controller's own copy has applied always stay, and
so does a tail that its copy could lose in a power cut (it is written without an fsync per commit).

The leader trims, and helps a full store. While that is full nobody can begin to lead, since it grants no lease; so each
controller runs this all the time, and when there is no leader any of them helps, after a pause of its own: giving space back
freezes the store's members in turn, which is not to be done by several at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from prometheus_client import Gauge

from controllerd.leadership import key
from controllerd.leadership.kv import Delete, Health, Kv
from controllerd.leadership.member import Member
from daemonkit import metrics
from daemonkit.errors import SkyrackError
from daemonkit.runtime import Runtime

log = logging.getLogger(__name__)

INTERVAL_S = 10.0
URGENT_INTERVAL_S = 2.0
RELIEF_PAUSE_MAX_S = 5.0
PAGE_ENTRIES = 100
DELETE_ENTRIES = 2000  # in one transaction

STORE_BYTES = Gauge("skyrack_cluster_store_bytes", "size of the consensus store", registry=metrics.REGISTRY)
QUOTA_BYTES = Gauge("skyrack_cluster_store_quota_bytes", "size at which it takes nothing more", registry=metrics.REGISTRY)
FULL = Gauge("skyrack_cluster_store_full", "1 while it takes nothing", registry=metrics.REGISTRY)
MEMBERS = Gauge("skyrack_cluster_store_members", "members of the consensus store", registry=metrics.REGISTRY)
ANSWERING = Gauge("skyrack_cluster_store_members_answering", "those that answer", registry=metrics.REGISTRY)
LOG_ENTRIES = Gauge("skyrack_cluster_log_entries", "entries kept in the log; on the leader only", registry=metrics.REGISTRY)


@dataclass(frozen=True)
class UpkeepSettings:
    """`keep_*`: how much log stays, whichever is less, and never more than a quarter of the quota. A controller that is
    registered but late may hold back `late_factor` times as much. `urgent_*`: what stays when the store is full."""

    keep_entries: int = 50_000
    keep_bytes: int = 256 << 20
    late_factor: int = 2
    urgent_entries: int = 5_000
    urgent_bytes: int = 32 << 20
    warn_share: float = 0.5


@dataclass(frozen=True)
class Block:
    """Neighbours in the log: `entries` of them up to `last_seq`, `size` bytes together."""

    last_seq: int
    entries: int
    size: int

    @property
    def first_seq(self) -> int:
        return self.last_seq - self.entries + 1


@dataclass(frozen=True)
class Plan:
    """`keep_from`: slots below it go. `relieve`: then the space is given back and the alarm lifted."""

    keep_from: int
    relieve: bool


def decide(settings: UpkeepSettings, blocks: Sequence[Block], applied: int, others: Sequence[int], health: Health) -> Plan:
    """`applied`: last entry in this controller's own copy. `others`: the same of each registered controller."""
    if not blocks:
        return Plan(0, health.full)
    share = health.bytes_max // 4
    keep_bytes = min(settings.keep_bytes, share)
    if health.full:
        keep_from = _tail(blocks, settings.urgent_entries, min(settings.urgent_bytes, share // 4))
    else:
        wanted = _tail(blocks, settings.keep_entries, keep_bytes)
        at_most = _tail(blocks, settings.late_factor * settings.keep_entries, settings.late_factor * keep_bytes)
        keep_from = max(at_most, min([wanted, *(seq + 1 for seq in others)]))
    return Plan(min(keep_from, applied + 1, blocks[-1].last_seq), health.full)


def _tail(blocks: Sequence[Block], entries_max: int, bytes_max: int) -> int:
    """First seq of the longest run of whole blocks at the end that is within both bounds."""
    entries = size = 0
    for block in reversed(blocks):
        entries, size = entries + block.entries, size + block.size
        if entries > entries_max or size > bytes_max:
            return block.last_seq + 1
    return blocks[0].first_seq


class Upkeep:
    """`applied`, `leads`: of this controller, now. `reclaim`: gives freed space back and lifts the alarm (EtcdKv.reclaim)."""

    def __init__(
        self,
        kv: Kv,
        reclaim: Callable[[], Awaitable[None]],
        applied: Callable[[], int],
        leads: Callable[[], bool],
        runtime: Runtime,
        settings: UpkeepSettings = UpkeepSettings(),
    ) -> None:
        self._kv, self._reclaim = kv, reclaim
        self._applied, self._leads = applied, leads
        self._runtime, self._settings = runtime, settings
        self._blocks: list[Block] = []
        self._revision = 0  # of the store at the last pass: what is older is forgotten at the next
        self._warned = False

    async def run(self) -> None:
        while True:
            try:
                full = await self.step()
            except SkyrackError as error:  # also certificates that are just being replaced
                full = False
                log.warning("no upkeep of the consensus store", extra={"why": error.message})
            await asyncio.sleep(self._runtime.jitter_s(URGENT_INTERVAL_S) if full else INTERVAL_S)

    async def step(self) -> bool:
        """One pass; tells whether the store was full. Errors: Unavailable."""
        health = await self._kv.health()
        self._show(health)
        if not self._leads():
            self._blocks.clear()
            if not (health.full and await self._nobody_else_helps()):
                return health.full
        others = await self._read()
        plan = decide(self._settings, self._blocks, self._applied(), others, health)
        await self._trim(plan.keep_from)
        await self._compact(at_once=plan.relieve)
        if plan.relieve:
            log.warning("the consensus store was full; giving space back", extra={"log_from": plan.keep_from})
            await self._reclaim()
        return health.full

    async def _nobody_else_helps(self) -> bool:
        """Whether there is no leader to do it, before and after a pause in which another controller may have begun."""
        if (await self._kv.range(key.LEADER)).items:
            return False
        await asyncio.sleep(self._runtime.jitter_s(RELIEF_PAUSE_MAX_S))
        return (await self._kv.health()).full and not (await self._kv.range(key.LEADER)).items

    def _show(self, health: Health) -> None:
        STORE_BYTES.set(health.bytes_used)
        QUOTA_BYTES.set(health.bytes_max)
        FULL.set(health.full)
        MEMBERS.set(health.members)
        ANSWERING.set(health.members_answering)
        much = health.bytes_used > self._settings.warn_share * health.bytes_max
        if much and not self._warned:
            used = {"bytes": health.bytes_used, "quota_bytes": health.bytes_max}
            log.warning("the consensus store uses much of its quota", extra=used)
        self._warned = much

    async def _read(self) -> list[int]:
        """Learns of entries that came or went since the last pass; gives the registered controllers' applied_seq."""
        oldest = await self._kv.range(key.LOG, key.after(key.LOG), limit=1)
        first = key.seq_of(oldest.items[0].key) if oldest.items else 0
        self._blocks = [block for block in self._blocks if first and block.first_seq >= first]
        more = True
        while more:
            from_seq = self._blocks[-1].last_seq + 1 if self._blocks else first
            page = await self._kv.range(key.slot(from_seq), key.after(key.LOG), limit=PAGE_ENTRIES)
            if page.items:
                last = key.seq_of(page.items[-1].key)
                self._blocks.append(Block(last, len(page.items), sum(len(item.value) for item in page.items)))
            more = page.more
        members = await self._kv.range(key.MEMBERS, key.after(key.MEMBERS))
        return [Member.decode(item.value).applied_seq for item in members.items]

    async def _trim(self, keep_from: int) -> None:
        """In the order of the log, so that what is left has no gap."""
        while self._blocks and self._blocks[0].first_seq < keep_from:
            from_seq = self._blocks[0].first_seq
            below = min(from_seq + DELETE_ENTRIES, keep_from)
            await self._kv.txn((), (Delete(key.LOG, key.slot(below)),))
            self._blocks = [part for block in self._blocks if (part := _above(block, below))]
        LOG_ENTRIES.set(sum(block.entries for block in self._blocks))

    async def _compact(self, at_once: bool) -> None:
        """A pass late, so that watches have had their time to see what is forgotten."""
        revision = (await self._kv.range(key.CLUSTER)).revision
        if at_once:
            await self._kv.compact(revision)
        elif self._revision:
            await self._kv.compact(self._revision)
        self._revision = revision


def _above(block: Block, below: int) -> Block | None:
    """What is left of it when the slots below are deleted; its size is then a guess."""
    left = min(block.entries, block.last_seq - below + 1)
    return Block(block.last_seq, left, block.size * left // block.entries) if left > 0 else None
