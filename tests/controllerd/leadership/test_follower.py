"""Following: snapshots, silent watches, copies that do not belong to the log; whole controllers on the store in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from controllerd.leadership import key
from controllerd.leadership.entry import Diverged, Unusable
from controllerd.leadership.kv import Created, Delete, Put
from controllerd.leadership.member import Member
from tests.controllerd.leadership.house import House, Position, house, run, told, until


def test_away_for_long_catches_up_by_snapshot() -> None:
    async def story() -> None:
        async with house() as h:
            leader = await h.leader()
            away = next(c for c in h.controllers.values() if c is not leader)
            await asyncio.sleep(5)
            away.kv.link.cut()
            await asyncio.sleep(20)
            await leader.kv.txn([], [Delete(key.slot(0), key.slot(leader.copy.position.seq - 5))])
            await leader.kv.compact(h.store.revision - 3)
            assert away.copy.snapshots == 0
            away.kv.link.mend()
            await asyncio.sleep(5)
            assert away.copy.snapshots == 1
            assert abs(away.copy.position.seq - leader.copy.position.seq) < 3

    run(story())


def test_a_snapshot_is_not_waited_for_from_who_leads_no_longer() -> None:
    async def story() -> None:
        h = House()
        blank = h.controllers["c"]
        fetch, frozen = blank.fetch_snapshot, list[str]()

        async def fetch_slowly(leader: Member, into: Path) -> None:
            """The first one asked never answers."""
            if not frozen or leader.name in frozen:
                frozen.append(leader.name)
                await asyncio.sleep(3600)
            await fetch(leader, into)

        blank.fetch_snapshot = fetch_slowly  # type: ignore[method-assign]
        for name in "ab":
            h.controllers[name].bootstrap()
        h.start()
        try:
            await until(lambda: bool(frozen))
            await asyncio.sleep(5)
            assert len(frozen) == 1 and blank.copy.snapshots == 0, "while it leads it is given time"
            (await h.leader()).pause()
            await until(lambda: blank.copy.snapshots == 1)
        finally:
            await h.end()

    run(story())


def test_a_silent_watch_is_noticed_by_the_poll() -> None:
    async def story() -> None:
        async with house() as h:
            leader = await h.leader()
            await asyncio.sleep(5)
            for controller in h.controllers.values():
                for watcher in list(h.store._watchers):
                    h.store.detach(watcher)
                assert controller.task is not None
            await asyncio.sleep(5)
            for controller in h.controllers.values():
                assert leader.copy.position.seq - controller.copy.position.seq < 40
            leader.kill()
            assert await until(lambda: bool(h.leading)) < 3 + 2

    run(story())


def test_a_foreign_copy_ends_loudly() -> None:
    async def story() -> None:
        async with house("ab", blank="b") as h:
            stranger = h.controllers["b"]
            await h.leader()
            await stranger.stop()
            stranger.bootstrap("another cloud")
            stranger.start()
            assert stranger.task is not None
            await asyncio.wait([stranger.task], timeout=10)
            assert Unusable in told(stranger.task)
            stranger.task = None

    run(story())


def test_of_two_clouds_in_an_empty_store_one_leads_and_the_other_ends_loudly() -> None:
    async def story() -> None:
        h = House(names="ab")
        for name, controller in h.controllers.items():
            controller.bootstrap(f"cloud {name}")
        h.start()
        try:
            leader = await h.leader()
            other = next(c for c in h.controllers.values() if c is not leader)
            leader.kill()  # before the log has reached where the other's copy would notice it
            assert other.task is not None
            await asyncio.wait([other.task], timeout=10)
            assert Unusable in told(other.task) and other.terms == []
            other.task = None
        finally:
            await h.end()

    run(story())


@pytest.mark.parametrize("while_it", ["follows", "campaigns"])
def test_a_copy_from_before_a_restore_never_leads_the_restored_cloud(while_it: str) -> None:
    """Somebody forgot to stop it. It finds the log empty, and itself at the end of it."""

    async def story() -> None:
        async with house("ab") as h:
            leader = await h.leader()
            late = next(c for c in h.controllers.values() if c is not leader)
            await asyncio.sleep(3)
            if while_it == "campaigns":
                late.kv.link.delay_s = 0.2
            else:
                late.pause()
            leader.kill()
            await until(lambda: h.store.get(key.LEADER) is None)
            if while_it == "campaigns":  # it has looked, and is about to take the leader key
                leases = h.store._last_lease
                await until(lambda: h.store._last_lease > leases)
            changes = (Delete(key.LOG, key.after(key.LOG)), Put(key.CLUSTER, b"restored"))
            assert h.store.txn([Created(key.LEADER, 0)], changes, []).succeeded
            late.resume()
            assert late.task is not None
            await asyncio.wait([late.task], timeout=20)
            assert Unusable in told(late.task)
            assert h.store.get(key.slot(late.copy.position.seq + 1)) is None
            late.task = None

    run(story())


def test_a_copy_ahead_of_the_log_ends_loudly() -> None:
    async def story() -> None:
        async with house("ab") as h:
            leader = await h.leader()
            other = next(c for c in h.controllers.values() if c is not leader)
            await other.stop()
            other.copy.position = Position(10_000, 1, "cloud")
            other.start()
            assert other.task is not None
            await asyncio.wait([other.task], timeout=10)
            assert Diverged in told(other.task)
            other.task = None

    run(story())
