"""The story of the first cloud, told on a rack that is up: `skyrack sandbox demo`."""

from __future__ import annotations

import asyncio

from skyrack.sandbox.rack import Rack
from skyrack.sandbox.up import connect


def main(rack: Rack) -> int:
    """Exit code for the shell: 0 when everything was as told."""
    return asyncio.run(_tell(rack))


async def _tell(rack: Rack) -> int:
    async with connect(rack) as cloud:
        states = await cloud.node_states()
    for name, state in sorted(states.items()):
        print(f"{name} is {state}")
    return 0 if all(state == "UP" for state in states.values()) else 1
