"""Machines whose clock is an hour off: nothing is late or early for it, usage is what it was, and people are told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from controllerd.store.database import Row
from skyrack.testing.virtual import EPOCH_S, RepeatableLoop
from tests.simulation.population import Client
from tests.simulation.run import Life
from tests.simulation.world import Shape, World

HOUR_S = 3600.0
WITHIN_S = 60.0
COMPUTES = ("k1", "k2")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class ServersLife(Life):
    """A server is made, rebooted and deleted; then what must hold after any life is looked at."""

    def __init__(self, world: World) -> None:
        super().__init__(world, 0.0)
        self._life_s = 0.0  # from active to its deletion

    async def _live(self) -> None:
        self._client = Client("client", self._population, self._population.tenants[0])
        await self._before()
        await self._client._create_server()
        await self._meanwhile()
        [self._server_id] = self._client._tenant.held["server"]
        await self._until("SELECT 1 FROM server WHERE state = 'ACTIVE'")
        active_s = self._world.now_s
        await asyncio.sleep(100.0)
        await self._when_active()
        await self._reboot()
        await asyncio.sleep(100.0)
        self._life_s = self._world.now_s - active_s
        await self._client._delete_server()
        await self._until("SELECT count(*) = 0 FROM server")
        [interval] = await self._rows("SELECT started_at, ended_at FROM usage_interval")
        assert interval["ended_at"] - interval["started_at"] == pytest.approx(self._life_s, abs=2.0)
        assert interval["ended_at"] == pytest.approx(EPOCH_S + self._world.now_s, abs=WITHIN_S)
        await self._after()

    async def _before(self) -> None: ...

    async def _meanwhile(self) -> None: ...

    async def _when_active(self) -> None: ...

    async def _after(self) -> None: ...

    async def _reboot(self) -> None:
        caller = self._client._tenant.caller
        await self._world.controller.servers.reboot(caller, self._server_id, hard=True)
        await self._until("SELECT 1 FROM task WHERE kind LIKE '%reboot%' AND state NOT IN ('RUNNING', 'UNWINDING')")
        [task] = await self._rows("SELECT state, fault_message FROM task WHERE kind LIKE '%reboot%'")
        assert (task["state"], task["fault_message"]) == ("DONE", "")

    async def _rows(self, sql: str) -> list[Row]:
        return await self._world.controller.database.read(lambda tx: tx.all(sql))

    async def _until(self, sql: str) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not [row for row in await self._rows(sql) if any(row.values())]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def _warnings(self) -> list[str]:
        rows = await self._rows(
            "SELECT e.kind || ' ' || n.name AS told FROM event e JOIN node n ON n.id = e.resource_id"
            " WHERE e.kind GLOB 'node.clock_*' ORDER BY e.kind, n.name"
        )
        return [row["told"].removeprefix("node.clock_") for row in rows]


class NodesOff(ServersLife):
    """The compute nodes' clocks are off from the start, or set in the middle."""

    def __init__(self, world: World, step_s: float, at_start: bool) -> None:
        super().__init__(world)
        self._step_s, self._at_start = step_s, at_start

    def _step(self, step_s: float) -> None:
        for node in COMPUTES:
            self._world.clocks[node].stepped_s = step_s

    async def _before(self) -> None:
        assert await self._warnings() == (["off k1", "off k2"] if self._at_start else [])

    async def _when_active(self) -> None:
        if not self._at_start:
            self._step(self._step_s)
            await asyncio.sleep(20.0)
        assert await self._warnings() == ["off k1", "off k2"]

    async def _after(self) -> None:
        self._step(0.0)
        await asyncio.sleep(20.0)
        assert await self._warnings() == ["off k1", "off k2", "right k1", "right k2"]


class NextLeaderOff(ServersLife):
    """Whoever leads next has a clock that is off; it takes over while a task waits for its node, and when all is quiet."""

    def __init__(self, world: World, step_s: float) -> None:
        super().__init__(world)
        self._step_s = step_s

    async def _succeed(self) -> None:
        old = self._world.leader
        assert old is not None
        for process in self._world.controllers.values():
            process.clock.stepped_s = 0.0 if process is old else self._step_s
        old.kill()
        await asyncio.sleep(10.0)
        await self._world.led()
        assert self._world.controller.database.now_s() == pytest.approx(EPOCH_S + self._world.now_s, abs=1.0)
        old.start()
        await asyncio.sleep(10.0)

    async def _meanwhile(self) -> None:
        for node in COMPUTES:
            self._world.rack.machines[node].reachable = False
        await self._succeed()
        [task] = await self._rows("SELECT state FROM task")
        assert task["state"] == "RUNNING"
        for node in COMPUTES:
            self._world.rack.machines[node].reachable = True

    async def _when_active(self) -> None:
        await self._succeed()


def live(directory: Path, shape: Shape, step_s: float, *, nodes: bool, at_start: bool = False) -> None:
    async def story() -> None:
        world = World(directory, 1, shape)
        if at_start:
            for node in COMPUTES:
                world.clocks[node].stepped_s = step_s
        async with world.up():
            await (NodesOff(world, step_s, at_start) if nodes else NextLeaderOff(world, step_s)).run()

    with asyncio.Runner(loop_factory=RepeatableLoop) as runner:
        runner.run(story())


@pytest.mark.parametrize("at_start", [True, False])
@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
def test_nodes_whose_clock_is_off(tmp_path: Path, step_s: float, at_start: bool) -> None:
    live(tmp_path, Shape(1), step_s, nodes=True, at_start=at_start)


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
def test_leaders_whose_clock_is_off(tmp_path: Path, step_s: float) -> None:
    live(tmp_path, Shape(3), step_s, nodes=False)
