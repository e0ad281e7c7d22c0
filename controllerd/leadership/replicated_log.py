"""The commit log of a term: each entry in a slot of its own in the consensus store, put there by one fenced transaction.

Two conditions guard it: the leader key is still the one that this term created, and the slot is empty. So an entry lands at
most once, in order, and only while its author leads. When the outcome of a try is unknown, the *same* transaction is sent
again: it succeeds, or finds its own bytes in the slot (an earlier try has landed), or finds that it never will land. A mere
look at the slot would not do: a delayed try could still land after it.
"""

from __future__ import annotations

import asyncio
import logging

from controllerd.leadership import key
from controllerd.leadership.entry import Entry, encode
from controllerd.leadership.kv import Created, Impossible, KeyValue, Kv, Put
from controllerd.leadership.lease import Lease, LeaseSettings
from controllerd.leadership.log_time import LogTime
from daemonkit.errors import Fenced, TooLarge, Unavailable
from daemonkit.runtime import Runtime

log = logging.getLogger(__name__)

GIVE_UP_TTLS = 2
PAUSE_MIN_S = 0.02
PAUSE_MAX_S = 0.5


class ReplicatedLog:
    """`leader_revision`: create revision of this term's leader key. `lease`: what the elector keeps renewed. `time`: what is
    known of the log's, and learns from the entries of this term; nothing is if None."""

    replicated = True

    def __init__(
        self, kv: Kv, leader_revision: int, lease: Lease, settings: LeaseSettings, runtime: Runtime, time: LogTime | None = None
    ) -> None:
        self._kv = kv
        self._leader_revision = leader_revision
        self._lease = lease
        self._settings = settings
        self._runtime = runtime
        self._time = time or LogTime(runtime.clock)

    @property
    def ahead_s(self) -> float | None:
        return self._time.ahead_s

    def next_epoch(self, last: int) -> int:
        return max(last + 1, self._leader_revision)

    async def append(self, entry: Entry) -> None:
        """Gives up after twice the lease's life: by then another may lead, and only the log itself tells the outcome.

        A definite no counts only at the first try: an earlier one may still land, whatever a later one is told.
        """
        value = encode(entry)
        began_s = self._runtime.clock.boottime_s()
        until_s = began_s + GIVE_UP_TTLS * self._settings.ttl_s
        pause_s, first = PAUSE_MIN_S, True
        while True:
            try:
                await self._try(entry.seq, value)
                self._time.complete(began_s)
                self._time.seen(entry.now)
                return
            except Unavailable as error:
                if first and isinstance(error, Impossible):
                    log.error("log entry refused", extra={"seq": entry.seq, "why": error.message, "bytes": len(value)})
                    raise TooLarge(f"the log of this cloud does not take a change of {len(value)} bytes") from None
                if self._runtime.clock.boottime_s() + pause_s > until_s:
                    raise self._unknown(entry.seq, error) from None
            await asyncio.sleep(pause_s / 2 + self._runtime.jitter_s(pause_s / 2))
            pause_s, first = min(2 * pause_s, PAUSE_MAX_S), False

    async def _try(self, seq: int, value: bytes) -> None:
        slot = key.slot(seq)
        conditions = (Created(key.LEADER, self._leader_revision), Created(slot, 0))
        result = await self._kv.txn(conditions, (Put(slot, value),), look=(slot, key.LEADER))
        if result.succeeded:
            return
        in_slot, leader = result.found
        if in_slot is None or in_slot.value != value:
            raise self._fenced(seq, in_slot, leader)
        log.info("an entry whose outcome was unknown is in the log", extra={"seq": seq})

    def _fenced(self, seq: int, in_slot: KeyValue | None, leader: KeyValue | None) -> Fenced:
        """It can never land: the leader key never gets this term's revision again, the slot is never emptied above the tail."""
        replaced = leader is None or leader.create_revision != self._leader_revision
        why = "another term began" if replaced else "its slot is taken"
        log.warning("log entry refused", extra={"seq": seq, "why": why, "taken": in_slot is not None})
        return Fenced(f"log entry {seq} refused: {why}")

    def _unknown(self, seq: int, error: Unavailable) -> Unavailable:
        log.error("log entry given up, its outcome is unknown", extra={"seq": seq, "why": error.message})
        return Unavailable(
            "the log of this cloud cannot be written now; whether the change was made is not known, try again later",
            retry_after_s=str(self._settings.ttl_s),
        )

    def assert_leading(self) -> None:
        if not self._lease.holds(self._runtime.clock.boottime_s()):
            raise Unavailable(
                "this controller cannot prove that it still leads; try again", retry_after_s=str(self._settings.ttl_s)
            )
