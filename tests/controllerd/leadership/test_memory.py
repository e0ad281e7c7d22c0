"""The store in memory: the port's promises by the very tests that etcd passes, then the troubles only it can make."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from controllerd.leadership.kv import Change, Created, Put
from controllerd.leadership.memory import MemoryKv, MemoryStore
from daemonkit.errors import Unavailable
from tests.controllerd.leadership.etcd.test_client import (  # noqa: F401
    test_a_range_comes_in_order_and_in_pages,
    test_a_transaction_holds_or_looks,
    test_a_watch_tells_what_happened_since,
    test_keys_go_with_their_lease,
    test_what_is_compacted_is_not_watched,
)
from tests.daemonkit import virtual


@pytest.fixture
def etcd() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def connect() -> Callable[[MemoryStore], MemoryKv]:
    return MemoryKv


def told(story: Callable[[MemoryStore, MemoryKv], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A story under a virtual clock, with a store and one client."""

    def test() -> None:
        async def whole() -> None:
            store = MemoryStore()
            await story(store, MemoryKv(store))

        virtual.run(whole())

    return test


def now_s() -> float:
    return asyncio.get_running_loop().time()


@told
async def test_a_lease_ends_by_itself(store: MemoryStore, kv: MemoryKv) -> None:
    lease = await kv.grant(3)
    await kv.txn([], [Put("/k", b"", lease)])
    watch = kv.watch("/k", store.revision + 1)
    for _ in range(4):
        await asyncio.sleep(2)
        assert await kv.keep_alive(lease) == 3.0
    renewed_s = now_s()
    assert await anext(watch) == [Change("/k", None, store.revision)]
    assert now_s() == renewed_s + 3
    assert await kv.keep_alive(lease) == 0.0


@told
async def test_a_short_lease_is_as_short_as_the_store_has_it(store: MemoryStore, kv: MemoryKv) -> None:
    assert await kv.keep_alive(await kv.grant(1)) == 2.0


@told
async def test_a_delay_goes_both_ways(store: MemoryStore, kv: MemoryKv) -> None:
    kv.link.delay_s = 0.2
    await kv.range("/k")
    assert now_s() == pytest.approx(0.4)


@told
async def test_a_held_request_lands_after_its_caller_gave_up(store: MemoryStore, kv: MemoryKv) -> None:
    kv.link.hold()
    with pytest.raises(Unavailable):
        await kv.txn([], [Put("/k", b"1")])
    assert now_s() == 1.0 and store.get("/k") is None
    kv.link.mend()
    assert store.get("/k") is not None


@told
async def test_a_lost_reply_is_a_change_that_was_made(store: MemoryStore, kv: MemoryKv) -> None:
    kv.link.lose_reply = lambda: True
    with pytest.raises(Unavailable):
        await kv.txn([], [Put("/k", b"1")])
    assert store.get("/k") is not None
    kv.link.lose_request = lambda: True
    with pytest.raises(Unavailable):
        await kv.txn([], [Put("/l", b"1")])
    assert store.get("/l") is None


@told
async def test_a_cut_link_refuses_and_breaks_watches(store: MemoryStore, kv: MemoryKv) -> None:
    watch = kv.watch("/", 1)
    coming = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(1)
    kv.link.cut()
    with pytest.raises(Unavailable):
        await coming
    with pytest.raises(Unavailable):
        await kv.grant(3)
    assert now_s() == 1.0
    kv.link.mend()
    assert await kv.grant(3)


@told
async def test_a_held_watch_is_silent_and_then_tells_all(store: MemoryStore, kv: MemoryKv) -> None:
    other = MemoryKv(store)
    coming = asyncio.ensure_future(anext(kv.watch("/", 1)))
    await asyncio.sleep(1)
    kv.link.hold()
    await other.txn([], [Put("/k", b"1")])
    await asyncio.sleep(100)
    assert not coming.done()
    kv.link.mend()
    assert [change.key for change in await coming] == ["/k"]


@told
async def test_changes_come_in_order_though_the_delay_shrinks(store: MemoryStore, kv: MemoryKv) -> None:
    other = MemoryKv(store)
    watch = kv.watch("/", 1)
    seen = [asyncio.ensure_future(anext(watch))]
    await asyncio.sleep(1)
    for n, delay_s in enumerate((0.5, 0.1, 0.0)):
        kv.link.delay_s = delay_s
        await other.txn([], [Put("/k", bytes([n]))])
    values = [c.value for c in await seen[0]]
    for _ in range(2):
        values += [c.value for c in await anext(watch)]
    assert values == [b"\x00", b"\x01", b"\x02"]


@told
async def test_without_quorum_nothing_is_done_and_no_lease_ends(store: MemoryStore, kv: MemoryKv) -> None:
    lease = await kv.grant(3)
    await kv.txn([], [Put("/k", b"1", lease)])
    store.lose_quorum()
    for call in (kv.range("/k"), kv.txn([Created("/l", 0)], [Put("/l", b"1")]), kv.keep_alive(lease)):
        with pytest.raises(Unavailable):
            await call
    assert (await kv.health()).members_answering == 1
    await asyncio.sleep(100)
    assert store.get("/k") is not None and store.get("/l") is None
    store.regain_quorum()
    assert store.get("/l") is not None  # what waited is done
    await asyncio.sleep(2.9)
    assert store.get("/k") is not None
    await asyncio.sleep(0.2)
    assert store.get("/k") is None


@told
async def test_a_full_store_takes_nothing_until_it_is_compacted(store: MemoryStore, kv: MemoryKv) -> None:
    small = MemoryStore(bytes_max=1000)
    kv = MemoryKv(small)
    for _ in range(10):
        await kv.txn([], [Put("/k", bytes(100))])
    assert (await kv.health()).full
    with pytest.raises(Unavailable):
        await kv.txn([], [Put("/k", b"")])
    assert await kv.grant(3) and (await kv.range("/k")).items
    await kv.compact(small.revision)
    assert not (await kv.health()).full
    assert (await kv.txn([], [Put("/k", b"")])).succeeded
