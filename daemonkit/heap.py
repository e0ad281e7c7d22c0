"""The memory of a daemon: what the allocator gives back, and when the cyclic collector looks at everything.

Left alone, Python looks through all old objects whenever a quarter as many have become old, though they be dead again: a
controller of a thousand nodes, asked for long lists, then stands still for a quarter of a second every few seconds and finds
nothing. Here that happens when the heap has really grown, and what was there at the start is never looked at again.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys

# mallopt(3): parameters of glibc's allocator.
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_LARGE_BYTES = 256 << 10
_ARENAS = 2

_NEVER = 1 << 30
LOOK_INTERVAL_S = 30.0
GROWTH, GROWTH_MIN_BLOCKS = 1.25, 50_000  # some 5 MiB


def give_memory_back() -> None:
    """Tells glibc to return large blocks to the kernel when they are freed, and to keep few arenas for threads.

    Left alone it raises the threshold each time a large block is freed: two logins (argon2, 19 MiB each) cost 40 MiB for good.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    libc.mallopt(_M_ARENA_MAX, _ARENAS)


def settle() -> None:
    """What is there now stays to the end. From now on somebody must `tend` the heap."""
    gc.collect()
    gc.freeze()
    young, middle, _old = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)


async def tend(interval_s: float = LOOK_INTERVAL_S) -> None:
    """Collects what is old and dead whenever there is a quarter more of everything than after the last time."""
    kept = sys.getallocatedblocks()
    while True:
        await asyncio.sleep(interval_s)
        if sys.getallocatedblocks() > kept * GROWTH + GROWTH_MIN_BLOCKS:
            gc.collect()
            kept = sys.getallocatedblocks()
