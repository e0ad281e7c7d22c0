"""The port's promises, kept by a real etcd."""

from __future__ import annotations

import shutil
from contextlib import aclosing
from pathlib import Path

import pytest

from controllerd.leadership.etcd.client import EtcdKv
from controllerd.leadership.kv import Change, Compacted, Created, Delete, Put
from daemonkit.errors import ConfigError, Unavailable
from tests.etcd import EtcdCluster
from tests.pki import Pki

from .conftest import Connect


async def test_a_transaction_holds_or_looks(etcd: EtcdCluster, connect: Connect) -> None:
    kv = connect(etcd)
    first = await kv.txn((Created("/k", 0),), (Put("/k", b"1"), Put("/l", b"2")))
    assert first.succeeded
    again = await kv.txn((Created("/k", 0),), (Put("/k", b"3"),), look=("/k", "/none"))
    assert not again.succeeded
    found, none = again.found
    assert found is not None and (found.key, found.value, found.create_revision) == ("/k", b"1", first.revision)
    assert none is None
    assert (await kv.txn((Created("/k", first.revision),), (Delete("/k", "/m"),))).succeeded
    assert (await kv.range("/", "0")).items == ()


async def test_a_range_comes_in_order_and_in_pages(etcd: EtcdCluster, connect: Connect) -> None:
    kv = connect(etcd)
    await kv.txn((), [Put(f"/k/{n:02}", bytes([n])) for n in reversed(range(20))])
    whole = await kv.range("/k/", "/k0")
    assert [item.value[0] for item in whole.items] == list(range(20))
    assert not whole.more
    page = await kv.range("/k/05", "/k0", limit=3)
    assert [item.key for item in page.items] == ["/k/05", "/k/06", "/k/07"]
    assert page.more
    assert [item.key for item in (await kv.range("/k/03")).items] == ["/k/03"]


async def test_keys_go_with_their_lease(etcd: EtcdCluster, connect: Connect) -> None:
    kv = connect(etcd)
    lease = await kv.grant(5)
    await kv.txn((), (Put("/mine", b"", lease),))
    assert (await kv.range("/mine")).items[0].lease == lease
    assert await kv.keep_alive(lease) == 5.0
    await kv.revoke(lease)
    await kv.revoke(lease)  # a second time does no harm
    assert await kv.keep_alive(lease) == 0.0
    assert (await kv.range("/mine")).items == ()
    with pytest.raises(Unavailable):
        await kv.txn((), (Put("/mine", b"", lease),))


async def test_a_watch_tells_what_happened_since(etcd: EtcdCluster, connect: Connect) -> None:
    kv = connect(etcd)
    revision = (await kv.txn((), (Put("/w/a", b"1"),))).revision
    await kv.txn((), (Put("/other", b""),))
    await kv.txn((), (Put("/w/b", b"2"), Delete("/w/a")))
    seen: list[Change] = []
    async with aclosing(kv.watch("/w/", revision)) as changes:
        async for some in changes:
            seen += some
            if len(seen) == 3:
                await kv.txn((), (Put("/w/c", b"3"),))
            if len(seen) == 4:
                break
    assert sorted((change.key, change.value) for change in seen[1:3]) == [("/w/a", None), ("/w/b", b"2")]
    assert [seen[0], seen[3]] == [Change("/w/a", b"1", revision), Change("/w/c", b"3", revision + 3)]


async def test_what_is_compacted_is_not_watched(etcd: EtcdCluster, connect: Connect) -> None:
    kv = connect(etcd)
    for n in range(5):
        last = await kv.txn((), (Put("/w/a", bytes([n])),))
    await kv.compact(last.revision)
    await kv.compact(last.revision)  # by another controller
    with pytest.raises(Compacted):
        await anext(kv.watch("/w/", last.revision - 2))
    assert (await kv.range("/w/a")).items[0].value == bytes([4])


async def test_health_counts_the_members(etcd3: EtcdCluster, connect: Connect) -> None:
    kv = connect(etcd3)
    health = await kv.health()
    assert (health.members, health.members_answering, health.full) == (3, 3, False)
    assert 0 < health.bytes_used < health.bytes_max
    etcd3.kill((etcd3.leader() + 1) % 3)
    health = await kv.health()
    assert (health.members, health.members_answering) == (3, 2)


async def test_only_with_a_certificate(etcd3: EtcdCluster, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    other = Pki(tmp_path / "pki", "another-authority").node("controller")
    for name, file in (("client.pem", "node.pem"), ("client.key", "node.key")):
        (theirs / name).write_bytes((other / file).read_bytes())
    assert etcd3.tls_dir is not None
    (theirs / "ca.pem").write_bytes((etcd3.tls_dir / "ca.pem").read_bytes())
    for stranger in (EtcdKv(etcd3.endpoints, None), EtcdKv(etcd3.endpoints, theirs)):
        with pytest.raises(Unavailable):
            await stranger.range("/")
        await stranger.close()
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        EtcdKv(etcd3.endpoints, tmp_path)


async def test_certificates_that_are_just_being_replaced(etcd3: EtcdCluster, tmp_path: Path) -> None:
    assert etcd3.tls_dir is not None
    ours = tmp_path / "ours"
    shutil.copytree(etcd3.tls_dir, ours)
    kv = EtcdKv(etcd3.endpoints, ours)
    (ours / "client.pem").rename(ours / "aside")
    for call in (kv.range("/"), kv.txn([], [Put("/a", b"")]), kv.health(), anext(kv.watch("/", 1))):
        with pytest.raises(Unavailable, match=r"client\.pem"):
            await call
    (ours / "aside").rename(ours / "client.pem")
    assert (await kv.range("/")).revision
    await kv.close()
