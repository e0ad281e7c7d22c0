"""Who helps a full store: one controller, since each relief freezes the members in turn."""

from __future__ import annotations

import asyncio

from controllerd.leadership import key
from controllerd.leadership.kv import Put
from controllerd.leadership.memory import MemoryKv, MemoryStore
from controllerd.leadership.upkeep import Upkeep
from tests.daemonkit import virtual


class Full:
    """A store that takes nothing more, and who has reclaimed its space."""

    def __init__(self) -> None:
        self.store = MemoryStore(bytes_max=1000)
        self.kv = MemoryKv(self.store)
        self.helpers: list[str] = []

    async def fill(self, leader: bool) -> None:
        if leader:
            await self.kv.txn([], [Put(key.LEADER, b"a")])
        seq = 0
        while not (await self.kv.health()).full:
            seq += 1
            await self.kv.txn([], [Put(key.slot(seq), bytes(100))])

    def upkeep(self, name: str, leads: bool = False) -> Upkeep:
        async def reclaim() -> None:
            self.helpers.append(name)

        return Upkeep(MemoryKv(self.store), reclaim, lambda: 1000, lambda: leads, virtual.runtime(ord(name)))


def test_the_leader_helps_and_nobody_else() -> None:
    async def story() -> None:
        full = Full()
        await full.fill(leader=True)
        standbys = [full.upkeep(name) for name in "bc"]
        assert await asyncio.gather(*(one.step() for one in standbys)) == [True, True]
        assert not full.helpers and (await full.kv.health()).full
        assert await full.upkeep("a", leads=True).step()
        assert full.helpers == ["a"] and not (await full.kv.health()).full

    virtual.run(story())


def test_without_a_leader_one_of_them_helps() -> None:
    async def story() -> None:
        full = Full()
        await full.fill(leader=False)
        await asyncio.gather(*(full.upkeep(name).step() for name in "abc"))
        assert len(full.helpers) == 1 and not (await full.kv.health()).full

    virtual.run(story())
