"""The fenced log over a real etcd: what is appended is there once, in order, and only by the leader, whatever breaks."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

import pytest

from controllerd.leadership import key
from controllerd.leadership.entry import encode
from controllerd.leadership.etcd.client import EtcdKv
from controllerd.leadership.kv import Created, Put
from controllerd.leadership.lease import LeaseSettings
from controllerd.leadership.replicated_log import ReplicatedLog
from daemonkit.errors import Fenced, TooLarge, Unavailable
from tests.etcd import EtcdCluster
from tests.proxy import Proxy

from .conftest import Connect, Elect, entry

HANG_S = 60.0


async def slots(kv: EtcdKv) -> list[tuple[int, bytes]]:
    page = await kv.range(key.LOG, key.after(key.LOG))
    return [(key.seq_of(item.key), item.value) for item in page.items]


async def test_entries_come_to_lie_in_their_slots(etcd: EtcdCluster, connect: Connect, elect: Elect) -> None:
    kv = connect(etcd)
    log = await elect(kv)
    entries = [entry(seq) for seq in range(1, 4)]
    for one in entries:
        await log.append(one)
    assert await slots(kv) == [(one.seq, encode(one)) for one in entries]


async def test_the_epoch_rises_with_each_leader_and_over_the_last(etcd: EtcdCluster, connect: Connect, elect: Elect) -> None:
    kv = connect(etcd)
    first = (await elect(kv)).next_epoch(0)
    second = (await elect(kv)).next_epoch(first)
    assert second > first
    assert (await elect(kv)).next_epoch(1_000_000) == 1_000_001  # of a log that was restored into a younger etcd


async def test_a_taken_slot_and_a_newer_leader_refuse(etcd: EtcdCluster, connect: Connect, elect: Elect) -> None:
    kv = connect(etcd)
    old = await elect(kv, "a")
    await old.append(entry(1))
    with pytest.raises(Fenced, match="taken"):
        await old.append(entry(1))
    new = await elect(kv, "b")
    with pytest.raises(Fenced, match="another term"):
        await old.append(entry(2))
    await new.append(entry(2))
    assert [seq for seq, _ in await slots(kv)] == [1, 2]


async def test_what_etcd_does_not_take_is_refused_at_once(etcd: EtcdCluster, connect: Connect, elect: Elect) -> None:
    kv = connect(etcd)
    log = await elect(kv)
    with pytest.raises(TooLarge):
        await log.append(entry(1, random.randbytes(1_700_000)))
    await log.append(entry(1))
    assert [seq for seq, _ in await slots(kv)] == [1]


async def test_a_lost_answer_is_found_out(etcd: EtcdCluster, connect: Connect, elect: Elect) -> None:
    direct = connect(etcd)
    async with Proxy({0: etcd.ports[0].client}) as proxy, asyncio.timeout(HANG_S):
        log = await elect(connect(etcd, [f"127.0.0.1:{proxy.ports[0]}"]))
        await log.append(entry(1))
        proxy.freeze(proxy.ports[0], "back")
        asked = entry(2)
        appending = asyncio.ensure_future(log.append(asked))
        async with aclosing(direct.watch(key.slot(2), 1)) as landed:
            await anext(landed)
        assert not appending.done()
        proxy.cut(proxy.ports[0])
        await asyncio.sleep(0.1)
        assert not appending.done()
        proxy.thaw(proxy.ports[0])
        await appending
    assert (await slots(direct))[1:] == [(2, encode(asked))]


async def test_an_entry_under_way_never_lands_after_another_leads(etcd: EtcdCluster, connect: Connect, elect: Elect) -> None:
    direct = connect(etcd)
    async with Proxy({0: etcd.ports[0].client}) as proxy, asyncio.timeout(HANG_S):
        log = await elect(connect(etcd, [f"127.0.0.1:{proxy.ports[0]}"]))
        await log.append(entry(1))
        proxy.freeze(proxy.ports[0], "forth")
        appending = asyncio.ensure_future(log.append(entry(2)))
        await asyncio.sleep(1.5)  # more than one try is on its way
        new = await elect(direct, "b")
        proxy.thaw(proxy.ports[0])
        with pytest.raises(Fenced):
            await appending
        await new.append(entry(2))
    assert len(await slots(direct)) == 2


async def _append(log: ReplicatedLog, first: int, count: int) -> list[tuple[int, bytes]]:
    made = [entry(seq) for seq in range(first, first + count)]
    for one in made:
        await log.append(one)
    return [(one.seq, encode(one)) for one in made]


async def test_members_die_and_freeze_under_the_log(etcd3: EtcdCluster, connect: Connect, elect: Elect) -> None:
    kv = connect(etcd3)
    log = await elect(kv)
    async with asyncio.timeout(HANG_S):
        made = await _append(log, 1, 20)
        for fault in (etcd3.kill, etcd3.pause):
            leader = etcd3.leader()
            appending = asyncio.ensure_future(_append(log, len(made) + 1, 200))
            await asyncio.sleep(0.1)
            fault(leader)
            made += await appending
            etcd3.restart(leader)
            await asyncio.to_thread(etcd3.wait)
        assert await slots(kv) == made


async def test_without_a_quorum_it_gives_up_and_then_goes_on_by_itself(
    etcd3: EtcdCluster, connect: Connect, elect: Elect
) -> None:
    kv = connect(etcd3)
    log = await elect(kv, settings=LeaseSettings(ttl_s=2, margin_s=0.5))
    async with asyncio.timeout(HANG_S):
        await log.append(entry(1))
        log.assert_leading()
        etcd3.kill(0)
        await log.append(entry(2))  # two of three are enough
        etcd3.pause(1)
        unknown = entry(3)
        with pytest.raises(Unavailable) as told:
            await log.append(unknown)
        assert told.value.metadata["retry_after_s"] == "2"
        with pytest.raises(Unavailable):
            log.assert_leading()
        appending = asyncio.ensure_future(log.append(unknown))  # whether or not it is in the slot already
        await asyncio.sleep(0.5)
        etcd3.resume(1)
        await appending
    assert [seq for seq, _ in await slots(kv)] == [1, 2, 3]


async def test_the_two_conditions_are_what_fences(etcd: EtcdCluster, connect: Connect, elect: Elect) -> None:
    """The control: without them, an old leader's entry would replace the new one's."""
    kv = connect(etcd)
    old = await elect(kv, "a")
    new = await elect(kv, "b")
    await new.append(entry(1))
    assert (await kv.txn((), (Put(key.slot(1), b"of the old one"),))).succeeded
    assert not (await kv.txn((Created(key.slot(1), 0),), (Put(key.slot(1), b""),))).succeeded
    with pytest.raises(Fenced):
        await old.append(entry(1))
