"""etcd itself, and controllers' logs over it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from controllerd.leadership import key
from controllerd.leadership.entry import Entry, Kind
from controllerd.leadership.etcd.client import EtcdKv
from controllerd.leadership.kv import Created, Delete, Put
from controllerd.leadership.lease import Lease, LeaseSettings
from controllerd.leadership.replicated_log import ReplicatedLog
from daemonkit.runtime import system_runtime
from tests.etcd import EtcdCluster

SETTINGS = LeaseSettings(ttl_s=10)
RUNTIME = system_runtime()

Connect = Callable[..., EtcdKv]
Elect = Callable[..., Awaitable[ReplicatedLog]]


def entry(seq: int, body: bytes = b"a change") -> Entry:
    return Entry(seq, Kind.CHANGES, random.randbytes(16), epoch=1, schema=1, rows=1, body=body)


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdCluster]:
    """One member without TLS."""
    with EtcdCluster(tmp_path / "etcd", members=1) as cluster:
        yield cluster


@pytest.fixture
def etcd3(tmp_path: Path) -> Iterator[EtcdCluster]:
    """Three members with TLS."""
    with EtcdCluster(tmp_path / "etcd3", members=3, tls=True) as cluster:
        yield cluster


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """A client of a cluster; `endpoints` replace the cluster's."""
    async with AsyncExitStack() as stack:

        def connect(cluster: EtcdCluster, endpoints: list[str] | None = None, quota_bytes: int = 2 << 30) -> EtcdKv:
            kv = EtcdKv(endpoints or cluster.endpoints, cluster.tls_dir, quota_bytes)
            stack.push_async_callback(kv.close)
            return kv

        yield connect


@pytest.fixture
def elect() -> Elect:
    """Makes the caller leader, without a lease in etcd, and gives its log. An earlier leader's key is gone then."""

    async def elect(kv: EtcdKv, name: str = "a", settings: LeaseSettings = SETTINGS) -> ReplicatedLog:
        await kv.txn((), (Delete(key.LEADER),))
        won = await kv.txn((Created(key.LEADER, 0),), (Put(key.LEADER, name.encode()),))
        assert won.succeeded
        lease = Lease(settings, RUNTIME.clock.boottime_s(), settings.ttl_s)
        return ReplicatedLog(kv, won.revision, lease, settings, RUNTIME)

    return elect
