"""What a term's log says of an entry that the consensus store does not take."""

from __future__ import annotations

import random

import pytest

from controllerd.leadership import key
from controllerd.leadership.entry import Entry, Kind
from controllerd.leadership.kv import Created, Put
from controllerd.leadership.lease import Lease, LeaseSettings
from controllerd.leadership.memory import MemoryKv, MemoryStore
from controllerd.leadership.replicated_log import ReplicatedLog
from daemonkit.errors import TooLarge, Unavailable
from tests.daemonkit import virtual

SETTINGS = LeaseSettings(ttl_s=3)
LARGE = random.Random(1).randbytes(1_700_000)


def entry(body: bytes) -> Entry:
    return Entry(1, Kind.CHANGES, bytes(16), epoch=1, schema=1, rows=1, body=body)


async def elected(kv: MemoryKv) -> ReplicatedLog:
    won = await kv.txn([Created(key.LEADER, 0)], [Put(key.LEADER, b"a")])
    runtime = virtual.runtime()
    lease = Lease(SETTINGS, runtime.clock.boottime_s(), SETTINGS.ttl_s)
    return ReplicatedLog(kv, won.revision, lease, SETTINGS, runtime)


def test_too_large_at_the_first_try_is_a_definite_no() -> None:
    async def story() -> None:
        store = MemoryStore()
        log = await elected(MemoryKv(store))
        with pytest.raises(TooLarge):
            await log.append(entry(LARGE))
        await log.append(entry(b""))
        assert store.get(key.slot(1)) is not None

    virtual.run(story())


def test_too_large_after_a_try_in_doubt_leaves_the_doubt() -> None:
    async def story() -> None:
        kv = MemoryKv(MemoryStore())
        log = await elected(kv)
        lost = iter([True])
        kv.link.lose_reply = lambda: next(lost, False)
        with pytest.raises(Unavailable):
            await log.append(entry(LARGE))

    virtual.run(story())


def test_a_full_store_leaves_the_doubt() -> None:
    """etcd says so of entries, too, that it has carried out."""

    async def story() -> None:
        kv = MemoryKv(MemoryStore(bytes_max=1000))
        log = await elected(kv)
        await kv.txn([], [Put("/k", bytes(1000))])
        with pytest.raises(Unavailable):
            await log.append(entry(b""))

    virtual.run(story())
