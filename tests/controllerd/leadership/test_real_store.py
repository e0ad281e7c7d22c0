"""The real database and the real replica of three controllers on one log: terms come and go, the copies are one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from controllerd.leadership.elector import Elector, Term
from controllerd.leadership.follower import Follower
from controllerd.leadership.lease import LeaseSettings
from controllerd.leadership.member import Member
from controllerd.leadership.memory import MemoryKv, MemoryStore
from controllerd.leadership.replicated_log import ReplicatedLog
from controllerd.store import snapshot
from controllerd.store.database import Database
from controllerd.store.replica import Replica
from daemonkit.errors import SkyrackError, Unavailable
from tests.controllerd.leadership.house import begin, loop, run, until
from tests.controllerd.store.logs import opened, put
from tests.daemonkit import virtual

SETTINGS = LeaseSettings()


class Controller:
    def __init__(self, name: str, home: Path, store: MemoryStore, others: dict[str, Controller]) -> None:
        self.name, self.others, self.path = name, others, home / name / "state.db"
        self.kv = MemoryKv(store)
        self.runtime = virtual.runtime(hash_of(name))
        self.replica = Replica(self.path, self.runtime)
        follower = Follower(self.kv, self.replica, self.fetch_snapshot, self.runtime, self.path.with_name("incoming.db"))
        self.elector = Elector(self.kv, self.me, follower, SETTINGS, self.runtime)
        self.database: Database | None = None
        self.written: list[str] = []
        self.task = begin(name, self.elector.run(self.lead))

    def me(self) -> Member:
        return Member(
            self.name, f"{self.name}:7700", f"{self.name}:7701", "1", 1, self.replica.position.seq, self.runtime.clock.wall_s()
        )

    async def fetch_snapshot(self, leader: Member, into: Path) -> None:
        database = self.others[leader.name].database
        if database is None:
            raise Unavailable("not the leader")
        await snapshot.take(database, into)

    async def lead(self, term: Term) -> None:
        log = ReplicatedLog(term.kv, term.leader_revision, term.lease, SETTINGS, self.runtime)
        async with opened(self.path, log, self.runtime) as self.database:
            try:
                while not term.ending.is_set():
                    name = self.runtime.new_id()
                    await self.database.write(put(name))
                    self.written.append(name)
                    await asyncio.sleep(0.05)
            finally:
                self.database = None


def hash_of(name: str) -> int:
    return sum(name.encode())


async def faults(house: dict[str, Controller], store: MemoryStore) -> None:
    def leading() -> Controller:
        return next(c for c in house.values() if c.database is not None)

    for fault in ("transfer", "pause", "hold", "cut", "lose", "quorum"):
        await until(lambda: any(c.database is not None for c in house.values()))
        await asyncio.sleep(5)
        victim = leading()
        match fault:
            case "transfer":
                await victim.elector.resign(next(name for name in house if name != victim.name))
            case "pause":
                loop().freeze(victim.name)
                await asyncio.sleep(8)
                loop().thaw(victim.name)
            case "lose":
                victim.kv.link.lose_reply = lambda: True
                await asyncio.sleep(8)
                victim.kv.link.lose_reply = lambda: False
            case "quorum":
                store.lose_quorum()
                await asyncio.sleep(20)
                store.regain_quorum()
            case _:
                getattr(victim.kv.link, fault)()
                await asyncio.sleep(12)
                victim.kv.link.mend()


def test_nothing_acknowledged_is_lost_and_all_copies_are_one(tmp_path: Path) -> None:
    async def story() -> None:
        for name in "abc":
            (tmp_path / name).mkdir()
        async with opened(tmp_path / "a" / "state.db", runtime=virtual.runtime()) as first:
            await first.write(put("bootstrap"))
        store, house = MemoryStore(), {}
        for name in "abc":
            house[name] = Controller(name, tmp_path, store, house)
        await faults(house, store)
        await until(lambda: any(c.database is not None for c in house.values()))
        await asyncio.sleep(5)
        ended = await asyncio.gather(*(stop(c) for c in house.values()), return_exceptions=True)
        assert [e for e in ended if isinstance(e, SkyrackError)] == []
        await compare(house, store)

    run(story())


async def stop(controller: Controller) -> None:
    controller.task.cancel()
    await asyncio.wait([controller.task])
    if not controller.task.cancelled():
        controller.task.result()


async def compare(house: dict[str, Controller], store: MemoryStore) -> None:
    written = [name for c in house.values() for name in c.written]
    assert len(written) > 300 and sum(bool(c.written) for c in house.values()) > 1
    digests, found = set(), []
    for controller in house.values():
        follower = Follower(controller.kv, controller.replica, controller.fetch_snapshot, controller.runtime, controller.path)
        await follower.open()
        await follower.catch_up()
        digests.add((await controller.replica.digest(), controller.replica.position.seq))
        await follower.close()
    assert len(digests) == 1
    async with opened(house["b"].path, runtime=virtual.runtime()) as database:
        found = [row["name"] for row in await database.read(lambda tx: tx.all("SELECT name FROM project"))]
    assert set(written) <= set(found) and len(found) == len(set(found))
