"""Who leads next: known before, so that agents can wait there."""

from __future__ import annotations

import asyncio

from controllerd.leadership.member import heirs
from tests.controllerd.leadership.house import house, run, until


def test_the_order_begins_after_the_leader() -> None:
    assert heirs("a", "cab") == ["b", "c"] and heirs("b", "cab") == ["c", "a"]
    assert heirs("bb", "cab") == ["c", "a", "b"] and heirs("", ["a"]) == ["a"]


def test_the_first_heir_leads_and_the_second_where_that_one_is_gone() -> None:
    async def story(seed: int) -> None:
        async with house(seed=seed) as h:
            first = await h.leader()
            await asyncio.sleep(5)
            one, two = heirs(first.name, "abc")
            first.kill()
            await until(lambda: bool(h.leading))
            assert h.leading[0].name == one
            h.controllers[one].kill()
            await until(lambda: bool(h.leading))
            assert h.leading[0].name == two

    for seed in range(20):
        run(story(seed))
