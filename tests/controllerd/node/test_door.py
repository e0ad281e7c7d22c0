"""Many agents come at once: a few are let in at a time, and what costs more waits until nobody stands at the door."""

from __future__ import annotations

import asyncio

from controllerd.agents.door import LET_IN_AT_ONCE, QUIET_MAX_S, Door
from tests.daemonkit import virtual


def test_some_at_a_time_and_then_it_is_quiet() -> None:
    async def story() -> None:
        door, inside, most = Door(), 0, 0

        async def come() -> None:
            nonlocal inside, most
            async with door.passed():
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.01)
                inside -= 1

        coming = [asyncio.create_task(come()) for _ in range(10 * LET_IN_AT_ONCE)]
        await asyncio.sleep(0.005)
        await door.quiet()
        assert all(task.done() for task in coming) and most == LET_IN_AT_ONCE
        assert 0.09 < asyncio.get_running_loop().time() < 0.11
        await door.quiet()  # and stays so
        assert asyncio.get_running_loop().time() < 0.11

    virtual.run(story())


def test_where_somebody_always_comes_nobody_waits_for_ever() -> None:
    async def story() -> None:
        door = Door()

        async def come_again_and_again() -> None:
            while True:
                async with door.passed():
                    await asyncio.sleep(1.0)

        coming = [asyncio.create_task(come_again_and_again()) for _ in range(2 * LET_IN_AT_ONCE)]
        await asyncio.sleep(0.5)
        await door.quiet()
        assert asyncio.get_running_loop().time() == 0.5 + QUIET_MAX_S
        for task in coming:
            task.cancel()
        await asyncio.wait(coming)
        await door.quiet()  # who leaves at the door does not stand there for ever
        assert asyncio.get_running_loop().time() == 0.5 + QUIET_MAX_S

    virtual.run(story())
