"""One seed: a cloud, tenants, misfortune; then all is mended, and what must hold is looked at.

python -m tests.simulation.run SEED [--brief] [-v]      prints the digest of its history, or how it failed
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from controllerd.app.cloud import Once
from controllerd.app.security_group import ensure_default
from controllerd.controller import Controller
from controllerd.domain.page import Page
from controllerd.domain.policy import SYSTEM, Caller
from controllerd.domain.project import Project
from controllerd.domain.user import User
from controllerd.store import identity
from controllerd.store.database import Tx
from controllerd.store.identity import PROJECTS, USERS
from skyrack.testing.virtual import RepeatableLoop
from tests.simulation import fault, invariant
from tests.simulation.population import Client, Population, Tenant
from tests.simulation.story import content
from tests.simulation.world import Shape, World

MISFORTUNE_S, BRIEF_S = 40.0, 12.0
BETWEEN_FAULTS_S = 2.5
LOOK_INTERVAL_S = 0.25
SETTLED_WITHIN_S = 1500.0  # more than the longest deadline of a task
CLIENTS = 2  # of each tenant
TAIL = 60  # lines of history that are shown
ANEW = Once("", "", "")
SHAPES = (Shape(3, 0.0), Shape(3, 0.01), Shape(3, 0.0), Shape(1, 0.01))


@dataclass(frozen=True)
class Result:
    seed: int
    history: list[str]
    failure: str  # "" = none
    brief: bool = False

    def digest(self) -> str:
        return hashlib.sha256(
            "\n".join([*self.history, self.failure.splitlines()[0] if self.failure else ""]).encode()
        ).hexdigest()


@contextmanager
def scratch() -> Iterator[Path]:
    """In memory, if there is such a place."""
    memory = Path("/dev/shm")
    base = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="skyrack-sim-", dir=base) as path:
        yield Path(path)


def run(seed: int, directory: Path, shape: Shape | None = None, *, brief: bool = False) -> Result:
    """In a directory of its own below `directory`. `brief`: less misfortune, for the many seeds of a test."""
    world_of: list[World] = []

    async def live(directory: Path) -> None:
        async with World(directory, seed, shape or SHAPES[seed % len(SHAPES)]).up() as world:
            world_of.append(world)
            await Life(world, BRIEF_S if brief else MISFORTUNE_S).run()

    failure = ""
    with tempfile.TemporaryDirectory(dir=directory) as own:
        gc.disable()  # when it comes depends on what ran before, and what it ends is noticed
        try:
            with asyncio.Runner(loop_factory=RepeatableLoop) as runner:
                runner.run(live(Path(own)))
        except Exception as error:
            failure = _told(error)
        finally:
            gc.enable()
            gc.collect(0)  # all of this run is young
    return Result(seed, world_of[0].history if world_of else [], failure, brief)


def _told(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}\n" + "".join(traceback.format_exception(error))


class Life:
    def __init__(self, world: World, misfortune_s: float) -> None:
        self._world, self._misfortune_s = world, misfortune_s
        self._population = Population(world)
        self._watch = invariant.Watch(world)

    async def run(self) -> None:
        await self._prepare()
        async with asyncio.TaskGroup() as group:
            looking = group.create_task(self._look())
            await self._live()
            self._world.heal()
            await self._settle()
            looking.cancel()
        await invariant.final(self._world, self._population)
        await self._clear_away()
        invariant.bare(self._world)

    async def _live(self) -> None:
        tenants = self._population.tenants
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS * len(tenants)):
                client = Client(f"client-{number + 1}", self._population, tenants[number % len(tenants)])
                group.create_task(client.run())
            await fault.misfortune(self._world, self._misfortune_s, BETWEEN_FAULTS_S)
            self._population.leaving = True

    async def _look(self) -> None:
        while True:
            await self._watch.look()
            await asyncio.sleep(LOOK_INTERVAL_S)

    async def _settle(self) -> None:
        until_s = self._world.now_s + SETTLED_WITHIN_S
        while moving := await invariant.unsettled(self._world):
            assert self._world.now_s < until_s, f"does not come to rest: {moving}"
            await asyncio.sleep(1.0)
        await asyncio.sleep(5.0)  # the followers' last entry

    async def _clear_away(self) -> None:
        """Whatever state a thing has come to, it can be deleted."""
        controller = self._world.controller
        for table, verb in (("server", controller.servers.delete), ("volume", controller.volumes.delete)):
            rows = await controller.database.read(lambda tx, table=table: tx.all(f"SELECT id FROM {table}"))
            for row in rows:
                await verb(SYSTEM, row["id"])
            until_s = self._world.now_s + SETTLED_WITHIN_S
            while await controller.database.read(lambda tx, table=table: tx.value(f"SELECT 1 FROM {table}")):
                assert self._world.now_s < until_s, f"a {table} does not go"
                await asyncio.sleep(0.2)
        await self._settle()

    # ---- before

    async def _prepare(self) -> None:
        controller = self._world.controller
        external = await controller.networks.create(SYSTEM, "internet", False, True, ANEW)
        await controller.subnets.create(SYSTEM, external.network.id, "", "203.0.113.0/24", ANEW)
        image = await controller.images.create(SYSTEM, "mini", "raw", True, 0, 0, {}, ANEW)
        while not (uploaded := await self._upload(controller, image.id)):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        flavors = (await controller.flavors.list(SYSTEM, "", Page(10))).items
        chosen = [f.id for f in flavors if f.name in ("m1.tiny", "m1.small", "m1.medium")]
        for name in ("alpha", "beta"):
            caller = await controller.database.write(lambda tx, name=name: _member(tx, name))
            network_id = await _network(controller, caller, external.network.id)
            self._population.tenants.append(Tenant(caller, network_id, chosen, uploaded, external.network.id))
        self._world.note("world", f"{len(self._world.controllers)} controllers, prepared")

    async def _upload(self, controller: Controller, image_id: str) -> str:
        try:
            return (await controller.images.upload(SYSTEM, image_id, content())).id
        except Exception:
            return ""  # the storage node is not in session yet


def _member(tx: Tx, name: str) -> Caller:
    project = PROJECTS.insert(tx, Project(tx.new_id(), name, "", True, tx.now))
    user = USERS.insert(tx, User(tx.new_id(), f"user-{name}", "", "", True, tx.now))
    identity.grant(tx, user.id, project.id, "member")
    ensure_default(tx, project.id)
    return replace(
        SYSTEM, user_id=user.id, user_name=user.name, project_id=project.id, project_name=name, roles=frozenset({"member"})
    )


async def _network(controller: Controller, caller: Caller, external_id: str) -> str:
    network = await controller.networks.create(caller, "inside", False, False, ANEW)
    subnet = await controller.subnets.create(caller, network.network.id, "", "10.1.0.0/24", ANEW)
    router = await controller.routers.create(caller, "out", external_id, True, ANEW)
    await controller.routers.add_interface(caller, router.router.id, subnet.id)
    return str(network.network.id)


def main() -> int:
    seed = int(sys.argv[1])
    if "-v" in sys.argv:
        logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s", stream=sys.stderr)
    else:
        logging.disable(logging.CRITICAL)
    with scratch() as directory:
        result = run(seed, directory, brief="--brief" in sys.argv)
    if result.failure:
        print("\n".join(result.history[-TAIL:]), result.failure, f"seed {seed}", sep="\n")
        return 1
    print(result.digest(), len(result.history))
    return 0


if __name__ == "__main__":
    sys.exit(main())
