"""A member that is dead, frozen or cut off costs a moment; then another one is used."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import pytest

from controllerd.leadership.etcd.client import EtcdKv
from controllerd.leadership.kv import Put
from daemonkit.errors import Unavailable
from tests.etcd import EtcdCluster, free_port
from tests.proxy import Proxy, ProxyProcess

from .conftest import Connect

HANG_S = 60.0


async def test_reads_and_renewals_move_on(etcd3: EtcdCluster, connect: Connect) -> None:
    kv = connect(etcd3)
    async with asyncio.timeout(HANG_S):
        lease = await kv.grant(60)
        other = next(n for n in range(3) if n != etcd3.leader())
        kv_there = connect(etcd3, [etcd3.endpoints[other], *etcd3.endpoints])
        await kv_there.range("/k")
        etcd3.pause(other)
        before_s = time.monotonic()
        assert await kv_there.keep_alive(lease) == 60.0
        assert time.monotonic() - before_s < 10  # about one second on a machine that is not busy
        etcd3.resume(other)
        etcd3.kill(other)
        assert (await connect(etcd3, [etcd3.endpoints[other], *etcd3.endpoints]).range("/k")).items == ()


async def test_a_frozen_and_a_cut_link_cost_a_moment(etcd3: EtcdCluster, connect: Connect) -> None:
    with ProxyProcess({(port := free_port()): etcd3.ports[0].client}) as proxy:
        kv = connect(etcd3, [f"127.0.0.1:{port}", etcd3.endpoints[1]])
        async with asyncio.timeout(HANG_S):
            for fault in (proxy.freeze, proxy.cut):
                await kv.range("/k")
                fault(port)
                lease = await kv.grant(60)
                assert await kv.keep_alive(lease) == 60.0
                proxy.thaw(port)
                await kv.close()  # and from the second one to the first again


async def test_a_leader_of_nobody_renews_nothing(etcd3: EtcdCluster, connect: Connect) -> None:
    """etcd renews a lease where the leader believes to be, and it believes so for some time after it was left alone."""
    leader = etcd3.leader()
    kv = connect(etcd3, [etcd3.endpoints[leader]])
    async with asyncio.timeout(HANG_S):
        lease = await kv.grant(60)
        assert await kv.keep_alive(lease) == 60.0
        for other in {0, 1, 2} - {leader}:
            etcd3.pause(other)
        with pytest.raises(Unavailable):
            await kv.keep_alive(lease)


async def test_a_caller_without_patience_finds_another_member_next_time(etcd3: EtcdCluster, connect: Connect) -> None:
    other = next(n for n in range(3) if n != etcd3.leader())
    kv = connect(etcd3, [etcd3.endpoints[other], *etcd3.endpoints])
    await kv.range("/k")
    etcd3.pause(other)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await kv.range("/k")
    async with asyncio.timeout(HANG_S):
        await kv.range("/k")
        await kv.txn((), (Put("/k", b""),))  # once is enough


async def test_a_transaction_is_tried_once(etcd3: EtcdCluster, connect: Connect) -> None:
    async with Proxy({0: etcd3.ports[0].client}) as proxy, asyncio.timeout(HANG_S):
        kv = connect(etcd3, [f"127.0.0.1:{proxy.ports[0]}", *etcd3.endpoints[1:]])
        await kv.range("/k")
        proxy.freeze(proxy.ports[0])
        with pytest.raises(Unavailable):
            await kv.txn((), (Put("/k", b"1"),))
        assert (await kv.range("/k")).items == ()
        await kv.txn((), (Put("/k", b"2"),))


async def _collect(kv: EtcdKv, revision: int, count: int) -> list[int]:
    """Watches again from where it broke."""
    seen: list[int] = []
    while len(seen) < count:
        try:
            async with aclosing(kv.watch("/w/", revision + 1)) as changes:
                async for some in changes:
                    seen += [int(change.value or b"") for change in some]
                    revision = some[-1].revision
                    if len(seen) >= count:
                        break
        except Unavailable:
            await asyncio.sleep(0.05)
    return seen


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_a_watch_goes_on_at_another_member_without_gaps(etcd3: EtcdCluster, connect: Connect, fault: str) -> None:
    other = next(n for n in range(3) if n != etcd3.leader())
    writer = connect(etcd3, [endpoint for n, endpoint in enumerate(etcd3.endpoints) if n != other])
    watcher = connect(etcd3, [etcd3.endpoints[other], *etcd3.endpoints])
    revision = (await writer.range("/w/")).revision
    async with asyncio.timeout(HANG_S):
        watching = asyncio.ensure_future(_collect(watcher, revision, 300))
        for n in range(300):
            if n == 100:
                getattr(etcd3, fault)(other)
            await writer.txn((), (Put(f"/w/{n % 10}", str(n).encode()),))
        assert await watching == list(range(300))


async def test_a_watch_breaks_where_nobody_leads(etcd3: EtcdCluster, connect: Connect) -> None:
    kv = connect(etcd3, etcd3.endpoints[:1])
    async with asyncio.timeout(HANG_S):
        watching = asyncio.ensure_future(anext(kv.watch("/w/", 0)))
        await asyncio.sleep(0.5)
        etcd3.kill(1)
        etcd3.kill(2)
        with pytest.raises(Unavailable):
            await watching
