"""A whole cloud in virtual time under one seed: controllers, the rack of `skyrack.testing`, dice, and a history of it all.

Each daemon has randomness of its own, drawn from the seed and its name, so that what one of them draws does not change what
the others get.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from controllerd.controller import Controller
from controllerd.leadership.memory import Link, MemoryStore
from daemonkit.memory import Message
from daemonkit.runtime import InlineThreads, Runtime
from skyrack.testing.rack import NODES, Rack
from skyrack.testing.virtual import VirtualClock
from skyrack.v1 import agent_pb2
from tests.simulation.process import ControllerProcess
from tests.simulation.usage import Samples

DELAY_S_MAX = 0.005
VOLUME_DELAY_S_MAX = 0.05
SAMPLE_INTERVAL_S = 2.0
ACKS_LOST = 0.5  # of those of usage samples, where calls are lost too: they come again then
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Shape:
    """What kind of world. `loss`: share of calls that are lost, between clients, controllers and the consensus store."""

    controllers: int = 1
    loss: float = 0.0


class World:
    """`async with World(directory, seed).up() as world`. `dice`: when things happen that are nobody's decision."""

    def __init__(self, directory: Path, seed: int, shape: Shape = Shape()) -> None:
        self.seed, self.shape, self._directory = seed, shape, directory
        self.dice = random.Random(f"{seed}/story")
        self._noise = random.Random(f"{seed}/noise")
        self._calm = False
        self.history: list[str] = []
        self.samples = Samples()
        self.down: set[str] = set()  # what a fault has in its hands
        self.clocks: dict[str, VirtualClock] = {node: VirtualClock() for node in NODES}
        self.store = MemoryStore() if shape.controllers > 1 else None
        names = [f"c{number + 1}" for number in range(shape.controllers)]
        self.rack = Rack(
            directory, NODES, [f"{name}:7701" for name in names], self._runtime,
            volume_delay_s_max=VOLUME_DELAY_S_MAX, sample_interval_s=SAMPLE_INTERVAL_S, ledger=self.samples.ledger,
        )  # fmt: skip
        self.controllers = {name: self._controller(name) for name in names}
        for process in self.controllers.values():
            process.others = self.controllers

    def _controller(self, name: str) -> ControllerProcess:
        rng = random.Random(f"{self.seed}/{name}")
        home = self._directory / name
        process = ControllerProcess(name, home, self.rack.network, self.rack.blobs, self.store, rng)
        process.delay_s, process.lose, process.wire = self.dice.uniform(0.0, DELAY_S_MAX), self._lost, self._wire
        return process

    def _lost(self) -> bool:
        return not self._calm and self.shape.loss > 0 and self._noise.random() < self.shape.loss

    def _loses(self, message: Message) -> bool:
        """Of what agents and controllers say to each other, which is lost by the end that took it."""
        if self._calm or self.shape.loss == 0 or not isinstance(message, agent_pb2.ControllerMessage):
            return False
        return message.WhichOneof("body") == "telemetry_ack" and self._noise.random() < ACKS_LOST

    def _wire(self, link: Link) -> None:
        link.delay_s = self.dice.uniform(0.0, DELAY_S_MAX)
        link.lose_request = link.lose_reply = self._lost

    def _runtime(self, daemon: str) -> Runtime:
        """`daemon`: "computed-k1"."""
        clock = self.clocks[daemon.partition("-")[2]]
        return Runtime(clock, random.Random(f"{self.seed}/{daemon}"), lambda _name, _workers: InlineThreads())

    # ---- looking

    @property
    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def note(self, who: str, what: str) -> None:
        self.history.append(f"{self.now_s:10.3f}  {who:<14} {what}")

    @property
    def leader(self) -> ControllerProcess | None:
        """That says of itself that it leads, and runs."""
        leads = [p for p in self.controllers.values() if p.alive and not p.stopped and p.seat.controller is not None]
        return leads[0] if leads else None

    @property
    def controller(self) -> Controller:
        """The leading one."""
        leader = self.leader
        assert leader is not None and leader.seat.controller is not None, "nobody leads"
        return leader.seat.controller

    def heal(self) -> None:
        """Whatever a fault may have left behind; nothing is lost any more."""
        self.note("world", "HEALED")
        self._calm = True
        for process in self.controllers.values():
            if process.kv is not None:
                process.kv.link.mend()
            for node in self.rack.nodes:
                self.rack.link(node, process.address).mend()
        for machine in self.rack.machines.values():
            machine.forgive()
            machine.reachable = True

    async def led(self) -> Controller:
        """As soon as somebody leads."""
        async with asyncio.timeout(PATIENCE_S):
            while self.leader is None:  # noqa: ASYNC110 - virtual time costs nothing
                await asyncio.sleep(0.05)
        return self.controller

    # ---- coming up

    @asynccontextmanager
    async def up(self) -> AsyncIterator[World]:
        async with self.rack:
            await self._start_controllers()
            for node in NODES:
                await self.rack.join(self.controller, node)
                for process in self.controllers.values():
                    link = self.rack.link(node, process.address)
                    link.delay_s, link.lose = self.dice.uniform(0.0, DELAY_S_MAX), self._loses
                for daemon in self.rack.daemons_of(node):
                    await self.rack.start(daemon)
            try:
                yield self
            finally:
                for process in self.controllers.values():
                    await process.end()

    async def _start_controllers(self) -> None:
        """The first is bootstrapped, the others are taken in: they have the authority, and get the state from the first."""
        first, *others = self.controllers.values()
        await first.bootstrap(self._directory / "admin.env")
        for other in others:
            shutil.copytree(first.home / "ca", other.home / "ca")
        for process in self.controllers.values():
            process.start()
        await self.led()
