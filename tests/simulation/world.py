"""A whole cloud in virtual time under one seed: the rack and the controller of `skyrack.testing`, and dice.

Each daemon has randomness of its own, drawn from the seed and its name, so that what one of them draws does not change what
the others get.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from controllerd.controller import Controller
from daemonkit.runtime import InlineThreads, Runtime
from skyrack.testing.rack import NODES, Rack
from skyrack.testing.seat import Seat
from skyrack.testing.virtual import VirtualClock

CONTROLLER = "controller:7701"
DELAY_S_MAX = 0.005
VOLUME_DELAY_S_MAX = 0.05


class World:
    """`async with World(directory, seed).up() as world`. `dice`: when things happen that are nobody's decision."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._seed = seed
        self.dice = random.Random(f"{seed}/story")
        self.rack = Rack(directory, NODES, [CONTROLLER], self.runtime, volume_delay_s_max=VOLUME_DELAY_S_MAX)
        self.seat = Seat(directory, CONTROLLER, self.rack.network, self.rack.blobs, self.runtime)

    def runtime(self, name: str) -> Runtime:
        return Runtime(VirtualClock(), random.Random(f"{self._seed}/{name}"), lambda _name, _workers: InlineThreads())

    @property
    def controller(self) -> Controller:
        """The one that lives now."""
        return self.seat.controller

    @asynccontextmanager
    async def up(self) -> AsyncIterator[World]:
        async with self.rack:
            await self.seat.bootstrap()
            await self.seat.start()
            for node in NODES:
                await self.rack.join(self.controller, node)
                self.rack.link(node).delay_s = self.dice.uniform(0.0, DELAY_S_MAX)
                for daemon in self.rack.daemons_of(node):
                    await self.rack.start(daemon)
            yield self
            await self.seat.kill()
