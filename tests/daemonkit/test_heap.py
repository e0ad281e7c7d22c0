"""When the cyclic collector looks at old objects: not for what lives a moment, and soon after they have really grown."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from daemonkit import heap

HANG_S = 30.0


class Ring:
    """Dead only to the collector."""

    def __init__(self) -> None:
        self.me = self
        self.ballast = [object() for _ in range(100)]


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def looks() -> int:
    """How often everything was looked at."""
    return int(gc.get_stats()[2]["collections"])


def test_what_lives_for_a_moment_is_no_reason_to_look_at_everything() -> None:
    heap.settle()
    before = looks()
    for _ in range(20):
        _list = [Ring() for _ in range(10_000)]  # long enough to become old
    assert looks() == before


async def test_what_is_old_and_dead_goes_when_there_is_much_of_it() -> None:
    heap.settle()
    before = looks()
    tending = asyncio.create_task(heap.tend(0.01))
    try:
        await asyncio.sleep(0.1)
        assert looks() == before  # nothing has grown
        ring = Ring()
        first = weakref.ref(ring)
        gc.collect(1)  # it is old now
        del ring
        async with asyncio.timeout(HANG_S):
            while first() is not None:
                _dead = [Ring() for _ in range(2_000)]
                gc.collect(1)  # and so are these
                del _dead
                await asyncio.sleep(0.01)
        assert looks() > before
    finally:
        tending.cancel()
        await asyncio.wait([tending])
