"""What can go wrong, each with its end. A fault is done to whoever leads when it comes."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.torture.world import NAMES, World

HELD_S = 6.0  # twice a lease: another one leads by then
HOUR_S = 3600

# (world, name of the leader, dice); mended when it returns.
Fault = Callable[[World, str, random.Random], Awaitable[None]]


async def killed(world: World, leader: str, dice: random.Random) -> None:
    await world.controllers[leader].end(signal.SIGKILL)
    await asyncio.sleep(dice.uniform(0.5, HELD_S))
    world.controllers[leader].start()


async def stopped(world: World, leader: str, dice: random.Random) -> None:
    """It sleeps past its lease and wakes up believing that nothing happened."""
    world.controllers[leader].send(signal.SIGSTOP)
    await asyncio.sleep(HELD_S)
    world.controllers[leader].send(signal.SIGCONT)


async def dozed(world: World, leader: str, dice: random.Random) -> None:
    """For less than a lease, or a little more."""
    world.controllers[leader].send(signal.SIGSTOP)
    await asyncio.sleep(dice.uniform(1.0, 4.0))
    world.controllers[leader].send(signal.SIGCONT)


async def isolated(world: World, leader: str, dice: random.Random) -> None:
    """Its ways to etcd hang."""
    for port in world.doors[leader].to_etcd:
        world.proxy.freeze(port)
    await asyncio.sleep(HELD_S)
    for port in world.doors[leader].to_etcd:
        world.proxy.thaw(port)


async def cut_off(world: World, leader: str, dice: random.Random) -> None:
    """Its ways to etcd are refused."""
    for port in world.doors[leader].to_etcd:
        world.proxy.cut(port)
    await asyncio.sleep(HELD_S)
    for port in world.doors[leader].to_etcd:
        world.proxy.thaw(port)


async def unheard(world: World, leader: str, dice: random.Random) -> None:
    """What it asks of etcd is done, but no answer comes."""
    for port in world.doors[leader].to_etcd:
        world.proxy.freeze(port, "back")
    await asyncio.sleep(HELD_S)
    for port in world.doors[leader].to_etcd:
        world.proxy.thaw(port)


async def unreachable(world: World, leader: str, dice: random.Random) -> None:
    """It leads, but clients, agents and the other controllers do not reach it."""
    for port in world.doors[leader].inward:
        world.proxy.freeze(port)
    await asyncio.sleep(dice.uniform(1.0, HELD_S))
    for port in world.doors[leader].inward:
        world.proxy.thaw(port)


async def one_link_frozen(world: World, leader: str, dice: random.Random) -> None:
    port = dice.choice(world.doors[leader].to_etcd)
    world.proxy.freeze(port)
    await asyncio.sleep(HELD_S)
    world.proxy.thaw(port)


async def etcd_member_killed(world: World, leader: str, dice: random.Random) -> None:
    number = dice.randrange(3)
    world.etcd.kill(number)
    await asyncio.sleep(dice.uniform(0.5, HELD_S))
    world.etcd.restart(number)
    await asyncio.to_thread(world.etcd.wait)


async def etcd_leader_stopped(world: World, leader: str, dice: random.Random) -> None:
    number = max(0, world.etcd.leader())
    world.etcd.pause(number)
    await asyncio.sleep(HELD_S)
    world.etcd.resume(number)


async def quorum_lost(world: World, leader: str, dice: random.Random) -> None:
    one, other = dice.sample(range(3), 2)
    world.etcd.kill(one)
    world.etcd.kill(other)
    await asyncio.sleep(dice.uniform(1.0, HELD_S))
    world.etcd.restart(one)
    world.etcd.restart(other)
    await asyncio.to_thread(world.etcd.wait)


async def disk_full(world: World, leader: str, dice: random.Random) -> None:
    """Its own disk: what it leads with has no room to grow."""
    hog = world.home(leader) / "data" / "hog"
    _fill(hog)
    await asyncio.sleep(HELD_S)
    hog.unlink()


async def clock_stepped(world: World, leader: str, dice: random.Random) -> None:
    """Its wall clock is wrong by an hour, before and after."""
    world.clock_file(leader).write_text(str(dice.choice((-HOUR_S, HOUR_S))))
    await asyncio.sleep(2.0)
    await killed(world, leader, dice)
    world.clock_file(leader).write_text("0")


async def handed_over(world: World, leader: str, dice: random.Random) -> None:
    async with world.connect() as cloud:
        await cloud.cluster.transfer(dice.choice([name for name in NAMES if name != leader]))


def _fill(hog: Path) -> None:
    """To the last byte; only where the directory is a small file system of its own."""
    room = os.statvfs(hog.parent)
    assert room.f_blocks * room.f_frsize < 1 << 30, f"{hog.parent} is no small file system"
    with hog.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(64 << 10))
        except OSError:
            return


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        killed, stopped, isolated, unheard, quorum_lost, handed_over, etcd_member_killed, dozed, cut_off, clock_stepped,
        unreachable, one_link_frozen, etcd_leader_stopped, disk_full,
    )
}  # fmt: skip
