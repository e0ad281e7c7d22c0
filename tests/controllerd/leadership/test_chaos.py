"""Hundreds of short lives under one seed each: what a network, a scheduler and a consensus store may do, in any order.

Throughout: one leader believes (by its lease, at the true time), a read misses nothing acknowledged. At the end: somebody
leads, nothing acknowledged is lost, and all copies are the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from controllerd.leadership import key
from controllerd.leadership.entry import decode
from controllerd.leadership.kv import Delete, TxnResult
from controllerd.leadership.lease import Lease
from controllerd.leadership.memory import MemoryStore
from daemonkit.errors import SkyrackError
from tests.controllerd.leadership.house import Controller, House, run, until

LIFE_S = 20.0
CALM_S = 20.0
SEEDS = 200


class Chaos:
    def __init__(self, house: House) -> None:
        self.house, self.rng = house, house.rng
        self.history: list[str] = []

    async def rage(self) -> None:
        faults: list[Callable[[Controller], Coroutine[Any, Any, None]]] = [
            self.cut, self.hold, self.pause, self.lossy, self.slow, self.no_quorum, self.hand_over, self.die, self.trim,
        ]  # fmt: skip
        async with asyncio.TaskGroup() as group:
            end_s = asyncio.get_running_loop().time() + LIFE_S
            while asyncio.get_running_loop().time() < end_s:
                await asyncio.sleep(self.rng.uniform(0, 2))
                victim = self.rng.choice(list(self.house.controllers.values()))
                if self.house.leading and self.rng.random() < 0.5:
                    victim = self.house.leading[0]
                group.create_task(self.do(self.rng.choice(faults), victim))

    async def do(self, fault: Callable[[Controller], Coroutine[Any, Any, None]], victim: Controller) -> None:
        self.history.append(f"{asyncio.get_running_loop().time():.3f} {fault.__name__} {victim.name}")
        try:
            await fault(victim)
        except SkyrackError as error:
            self.history.append(f"{asyncio.get_running_loop().time():.3f} {fault.__name__} {victim.name}: {error.message}")

    async def some_time(self) -> None:
        await asyncio.sleep(self.rng.choice((0.3, 1.5, 4.0, 10.0)) * self.rng.random())

    async def cut(self, victim: Controller) -> None:
        link = victim.kv.link
        link.cut()
        await self.some_time()
        link.mend()

    async def hold(self, victim: Controller) -> None:
        link = victim.kv.link
        link.hold()
        await self.some_time()
        link.mend()

    async def pause(self, victim: Controller) -> None:
        victim.pause()
        await self.some_time()
        victim.resume()

    async def lossy(self, victim: Controller) -> None:
        link, share = victim.kv.link, self.rng.random()
        link.lose_reply = lambda: self.rng.random() < share
        link.lose_request = lambda: self.rng.random() < share / 2
        await self.some_time()
        link.lose_reply = link.lose_request = lambda: False

    async def slow(self, victim: Controller) -> None:
        link = victim.kv.link
        link.delay_s = self.rng.choice((0.05, 0.3, 0.7))
        await self.some_time()
        link.delay_s = 0.002

    async def no_quorum(self, victim: Controller) -> None:
        self.house.store.lose_quorum()
        await self.some_time()
        self.house.store.regain_quorum()

    async def hand_over(self, victim: Controller) -> None:
        await victim.elector.resign(self.rng.choice(["", *victim.elector.members()]))

    async def die(self, victim: Controller) -> None:
        if victim.task is not None:
            victim.kill()
            await self.some_time()
            victim.start()

    async def trim(self, victim: Controller) -> None:
        last = victim.copy.position.seq
        await victim.kv.txn([], [Delete(key.slot(0), key.slot(last))])
        await victim.kv.compact(self.house.store.revision)

    def calm(self) -> None:
        self.house.store.regain_quorum()
        for controller in self.house.controllers.values():
            if controller.task is None:
                controller.start()
            controller.resume()
            controller.kv.link.mend()
            controller.kv.link.delay_s = 0.002


async def watch_over(house: House) -> None:
    while True:
        await asyncio.sleep(0.05)
        assert len(house.leading) <= 1, "two believe that they lead"


async def life(seed: int, names: str = "abc") -> House:
    house = House(seed, names)
    house.controllers["a"].bootstrap()
    house.start()
    chaos = Chaos(house)
    over = asyncio.get_running_loop().create_task(watch_over(house))
    try:
        await chaos.rage()
        chaos.calm()
        await until(lambda: bool(house.leading), CALM_S)
        before = max(house.acknowledged)
        await asyncio.sleep(6)
        assert not over.done() or over.result()
        assert max(house.acknowledged) > before + 10, "nothing is written any more"
        verify(house)
    except BaseException:
        print(f"seed {seed}", *chaos.history, sep="\n")
        raise
    finally:
        over.cancel()
        await house.end()
    return house


def verify(house: House) -> None:
    (leader,) = house.leading
    for seq, batch in house.acknowledged.items():
        if entry := leader.copy.entries.get(seq):
            assert entry.batch == batch, f"acknowledged entry {seq} is lost"
    slots = [k for k in house.store._kept if k.startswith(key.LOG)]
    log = {key.seq_of(slot): decode(key.seq_of(slot), house.store._kept[slot].value) for slot in slots}
    for controller in house.controllers.values():
        assert controller.task is not None and not controller.task.done(), controller.task
        assert controller.copy.position.seq > leader.copy.position.seq - 10, f"{controller.name} is behind"
        for seq, entry in controller.copy.entries.items():
            assert leader.copy.entries.get(seq, entry) == entry and log.get(seq, entry) == entry


@pytest.mark.parametrize("first", range(0, SEEDS, 20))
def test_lives(first: int) -> None:
    houses = [run(life(seed)) for seed in range(first, first + 20)]
    assert sum(len(c.terms) for house in houses for c in house.controllers.values()) > 3 * len(houses)
    assert sum(c.reads for house in houses for c in house.controllers.values()) > 100 * len(houses)


def test_a_leader_that_never_doubts_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "holds", lambda self, now_s: True)
    monkeypatch.setattr(Lease, "rest_s", lambda self, now_s: 1.0)
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        for seed in range(20):
            run(life(seed))


def test_a_log_without_its_fence_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    fenced = MemoryStore.txn

    def unfenced(self: MemoryStore, conditions: Any, changes: Any, look: Any) -> TxnResult:
        is_entry = any(change.key.startswith(key.LOG) for change in changes)
        return fenced(self, () if is_entry else conditions, changes, look)

    monkeypatch.setattr(MemoryStore, "txn", unfenced)
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        for seed in range(20):
            run(life(seed))


def test_a_seed_is_one_history() -> None:
    def told(house: House) -> Any:
        return [(c.name, c.terms, c.reads, c.copy.position) for c in house.controllers.values()], house.store.revision

    assert told(run(life(7))) == told(run(life(7)))
