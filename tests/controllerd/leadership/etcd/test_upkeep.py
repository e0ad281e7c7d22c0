"""How much log stays, and how a full store comes to write again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controllerd.leadership import key
from controllerd.leadership.etcd.client import EtcdKv
from controllerd.leadership.kv import Compacted, Delete, Health, Put
from controllerd.leadership.lease import LeaseSettings
from controllerd.leadership.member import Member
from controllerd.leadership.upkeep import Block, Upkeep, UpkeepSettings, decide
from daemonkit.errors import Unavailable
from tests.etcd import EtcdCluster

from .conftest import RUNTIME, Connect, Elect, entry

SETTINGS = UpkeepSettings(keep_entries=1000, keep_bytes=1 << 20, urgent_entries=300, urgent_bytes=1 << 20)
ROOMY = Health(1 << 20, 2 << 30, full=False, members=3, members_answering=3)
# Entries 1 to 3000 in blocks of 100.
BLOCKS = [Block(last, 100, 1000) for last in range(100, 3001, 100)]


@pytest.mark.parametrize(
    ("why", "others", "health", "keep_from"),
    [
        ("as many as shall be kept", [3000, 2990], ROOMY, 2001),
        ("a late one is waited for", [3000, 1500], ROOMY, 1501),
        ("but not for ever", [3000, 10], ROOMY, 1001),
        ("a dead one is not registered", [], ROOMY, 2001),
        ("full: little is kept, for nobody", [10], replace(ROOMY, full=True), 2701),
        ("a small quota keeps less: a quarter of it", [], replace(ROOMY, bytes_max=16_000), 2601),
    ],
)
def test_where_the_log_is_cut(why: str, others: list[int], health: Health, keep_from: int) -> None:
    assert decide(SETTINGS, BLOCKS, 3000, others, health).keep_from == keep_from, why


def test_what_must_stay() -> None:
    tiny = replace(SETTINGS, keep_entries=0, urgent_entries=0)
    assert decide(tiny, BLOCKS, 3000, [3000], ROOMY).keep_from == 3000, "the last entry"
    assert decide(tiny, BLOCKS, 3000, [], replace(ROOMY, full=True)).keep_from == 3000, "the last entry"
    assert decide(tiny, BLOCKS, 1234, [3000], ROOMY).keep_from == 1235, "what this copy has not applied"
    assert decide(SETTINGS, [], 0, [], ROOMY).keep_from == 0, "an empty log"
    assert decide(SETTINGS, BLOCKS[:3], 300, [], ROOMY).keep_from == 1, "a short one"


def upkeep(kv: EtcdKv, applied: int, settings: UpkeepSettings, leads: bool = True) -> Upkeep:
    return Upkeep(kv, kv.reclaim, lambda: applied, lambda: leads, RUNTIME, settings)


async def seqs(kv: EtcdKv) -> list[int]:
    return [key.seq_of(item.key) for item in (await kv.range(key.LOG, key.after(key.LOG))).items]


async def test_the_leader_trims_and_compacts(etcd: EtcdCluster, connect: Connect, elect: Elect) -> None:
    kv = connect(etcd)
    log = await elect(kv)
    revision = (await kv.range("/")).revision
    for seq in range(1, 351):
        await log.append(entry(seq))
    settings = UpkeepSettings(keep_entries=100)
    member = Member("b", "", "", "1", 1, applied_seq=220)
    await kv.txn((), (Put(key.MEMBERS + "b", member.encode()),))
    standby = upkeep(kv, 350, settings, leads=False)
    await standby.step()
    assert len(await seqs(kv)) == 350
    leader = upkeep(kv, 350, settings)
    await leader.step()
    assert await seqs(kv) == list(range(221, 351))
    await kv.txn((), (Put(key.MEMBERS + "b", replace(member, applied_seq=350).encode()),))
    await log.append(entry(351))
    await leader.step()
    assert await seqs(kv) == list(range(301, 352))
    with pytest.raises(Compacted):
        await anext(kv.watch(key.LOG, revision + 1))


QUOTA_BYTES = 16 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[EtcdCluster]:
    options = [f"--quota-backend-bytes={QUOTA_BYTES}"]
    with EtcdCluster(tmp_path / "small", members=3, options=options) as cluster:
        yield cluster


async def test_a_full_store_is_made_to_write_again(
    small: EtcdCluster, connect: Connect, elect: Elect, caplog: pytest.LogCaptureFixture
) -> None:
    kv = connect(small, quota_bytes=QUOTA_BYTES)
    log = await elect(kv, settings=LeaseSettings(ttl_s=2))
    seq = 0
    with pytest.raises(Unavailable):
        while seq < 200:
            await log.append(entry(seq + 1, random.randbytes(400_000)))
            seq += 1
    assert seq > 10
    assert (await kv.health()).full
    with pytest.raises(Unavailable):
        await kv.grant(5)
    anybody = upkeep(kv, seq, SETTINGS, leads=False)
    assert await anybody.step() and (await kv.health()).full, "that is the leader's to do"
    await kv.txn((), (Delete(key.LEADER),))
    assert await anybody.step()
    assert any("much of its quota" in line for line in caplog.messages)
    assert not (await kv.health()).full
    kept = await seqs(kv)
    last = kept[-1]
    assert last in (seq, seq + 1), "the last one's outcome was unknown: etcd may do what it then says it has no space for"
    assert kept == list(range(kept[0], last + 1))
    await kv.grant(5)
    await (await elect(kv)).append(entry(last + 1))
