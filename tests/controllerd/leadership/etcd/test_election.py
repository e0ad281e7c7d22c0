"""Election, hand-over and following on a real etcd, in real time: that the store in memory has not promised too much."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from controllerd.leadership import key
from controllerd.leadership.elector import Elector, Term
from controllerd.leadership.follower import Follower
from controllerd.leadership.lease import LeaseSettings
from controllerd.leadership.member import Member
from controllerd.leadership.replicated_log import ReplicatedLog
from daemonkit.errors import Unavailable
from daemonkit.runtime import system_runtime
from tests.controllerd.leadership.house import MemoryCopy, Position
from tests.etcd import EtcdCluster

from .conftest import Connect, entry

LIMIT_S = 60.0
SETTINGS = LeaseSettings(ttl_s=2)


class Controller:
    def __init__(self, name: str, etcd: EtcdCluster, connect: Connect) -> None:
        self.name, self.runtime, self.copy = name, system_runtime(), MemoryCopy()
        self.copy.position = Position(cluster_id="cloud")
        follower = Follower(connect(etcd), self.copy, self.no_snapshot, self.runtime, Path(name))
        self.elector = Elector(connect(etcd), self.me, follower, SETTINGS, self.runtime)
        self.term: Term | None = None
        self.task = asyncio.create_task(self.elector.run(self.lead))

    def me(self) -> Member:
        return Member(self.name, "", f"{self.name}:7701", "1", 1, self.copy.position.seq, self.runtime.clock.wall_s())

    async def no_snapshot(self, leader: Member, into: Path) -> None:
        raise Unavailable("not needed here")

    async def lead(self, term: Term) -> None:
        log = ReplicatedLog(term.kv, term.leader_revision, term.lease, SETTINGS, self.runtime)
        self.copy.opened, self.term = True, term
        try:
            while not term.ending.is_set():
                one = entry(self.copy.position.seq + 1, random.randbytes(10))
                await log.append(one)
                log.assert_leading()
                self.copy.commit(one)
                await asyncio.sleep(0.05)
        finally:
            self.copy.opened, self.term = False, None


async def leading(controllers: list[Controller]) -> Controller:
    async with asyncio.timeout(LIMIT_S):
        while True:
            for controller in controllers:
                if controller.term is not None:
                    return controller
            await asyncio.sleep(0.02)


async def test_terms_come_and_go(etcd: EtcdCluster, connect: Connect) -> None:
    controllers = [Controller(name, etcd, connect) for name in "abc"]
    try:
        first = await leading(controllers)
        await asyncio.sleep(2.5)  # longer than the lease
        assert [c for c in controllers if c.term is not None] == [first]
        assert set(first.elector.members()) == {"a", "b", "c"}
        second = next(c for c in controllers if c is not first)
        assert second.elector.leader is not None and second.elector.leader.name == first.name
        await first.elector.resign(second.name)
        async with asyncio.timeout(LIMIT_S):
            while second.term is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        third = next(c for c in controllers if c not in (first, second))
        second.task.cancel()
        await asyncio.wait([second.task])
        assert await leading([first, third])
        connection = connect(etcd)
        assert (await connection.range(key.CLUSTER)).items[0].value == b"cloud"
        assert second.name not in [item.key for item in (await connection.range(key.MEMBERS, key.after(key.MEMBERS))).items]
    finally:
        for controller in controllers:
            controller.task.cancel()
        await asyncio.wait([controller.task for controller in controllers])
    last = max(c.copy.position.seq for c in controllers)
    assert last > 40 and min(c.copy.position.seq for c in (first, third)) > last - 10
