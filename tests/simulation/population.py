"""Tenants at work: they make, use and delete things through whichever controller leads, and write down what they were told.

A call goes on, the same one under the same idempotency key, until it is answered or its client loses patience; what came of
it then is unknown. A refusal is an answer.
"""

from __future__ import annotations

import asyncio
import base64
import random
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from controllerd.app.cloud import Once
from controllerd.app.server import NewServer, Wish
from controllerd.controller import Controller
from controllerd.domain.policy import Caller
from daemonkit.errors import Fenced, NotFound, NotLeader, SkyrackError, Unavailable
from tests.simulation.world import World
from tests.torture.history import CREATE, DELETE, DONE, Operation

T = TypeVar("T")
Call = Callable[[Controller], Awaitable[T]]

REFUSED = "refused"
PATIENCE_S = 40.0
PAUSE_FIRST_S, PAUSE_MAX_S = 0.1, 2.0
THINKING_S = 1.0  # on average, between two acts of a client
VOLUME_GIB = 2
_KEY = struct.pack(">I11sI32s", 11, b"ssh-ed25519", 32, bytes(32))
PUBLIC_KEY = f"ssh-ed25519 {base64.b64encode(_KEY).decode()}"
KINDS = ("server", "volume", "floating_ip", "keypair")


@dataclass
class Tenant:
    """A project and what its clients know of it: kind -> id -> the operation that made it."""

    caller: Caller
    network_id: str
    flavor_ids: list[str]
    image_id: str
    external_id: str
    held: dict[str, dict[str, Operation]] = field(default_factory=lambda: {kind: {} for kind in KINDS})


class Population:
    """`operations`: all that was asked for by creates and deletes, and what came of it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.operations: list[Operation] = []
        self.tenants: list[Tenant] = []
        self.leaving = False
        self._asked = 0

    def next_number(self) -> int:
        self._asked += 1
        return self._asked


class Client:
    def __init__(self, name: str, population: Population, tenant: Tenant) -> None:
        self._name, self._population, self._tenant = name, population, tenant
        self._world = population.world
        self._rng = random.Random(f"{self._world.seed}/{name}")
        self._turn = self._rng.randrange(8)
        acts: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (5, self._create_server), (3, self._delete_server), (2, self._switch_server),
            (2, self._create_volume), (1, self._delete_volume), (2, self._attach), (1, self._detach),
            (2, self._create_floating_ip), (1, self._map_floating_ip), (1, self._delete_floating_ip),
            (3, self._create_keypair), (2, self._delete_keypair), (1, self._look),
        ]  # fmt: skip
        self._acts = [act for weight, act in acts for _ in range(weight)]

    async def run(self) -> None:
        while not self._population.leaving:
            await asyncio.sleep(self._rng.expovariate(1 / THINKING_S))
            await self._rng.choice(self._acts)()

    # ---- calls

    async def _call(self, work: Call[T]) -> T:
        """Errors: the cloud's answer; Unavailable when patience ends. `error.again`: it was not the first try."""
        controllers = list(self._world.controllers.values())
        until_s, pause_s, tries = self._world.now_s + PATIENCE_S, PAUSE_FIRST_S, 0
        while True:
            process = controllers[self._turn % len(controllers)]
            try:
                return await process.ask(work)
            except NotLeader as error:
                named = [i for i, c in enumerate(controllers) if c.name == error.leader and c is not process]
                self._turn = named[0] if named else self._turn + 1
            except (Unavailable, Fenced) as error:
                self._turn += 1
                tries += 1
                if self._world.now_s > until_s:
                    raise Unavailable(f"given up: {error.message}") from None
            except SkyrackError as error:
                error.metadata["tries"] = str(tries)
                raise
            if self._world.now_s > until_s:
                raise Unavailable("given up: nobody leads")
            await asyncio.sleep(self._rng.uniform(pause_s / 2, pause_s))
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    async def _create(self, kind: str, work: Callable[[Controller, str, Once], Awaitable[Any]]) -> None:
        """`work` gets the name and gives the view of what it made."""
        number = self._population.next_number()
        name = f"{kind[0]}{number}"
        once = Once(f"{self._name}-{number}", f"Create{kind}", name)
        operation = self._begin(kind, CREATE, name)
        made = await self._settle(operation, lambda controller: work(controller, name, once))
        if operation.outcome == DONE:
            thing = getattr(made, kind, made)
            operation.resource_id = thing.id
            if kind == "floating_ip":
                operation.name = thing.id  # the only name it has
            self._tenant.held[kind][thing.id] = operation

    async def _delete(self, kind: str, work: Callable[[Controller, str], Awaitable[Any]]) -> None:
        held = self._tenant.held[kind]
        if not held:
            return
        resource_id = self._rng.choice(list(held))
        made = held.pop(resource_id)
        operation = self._begin(kind, DELETE, made.name)
        operation.resource_id = resource_id
        await self._settle(operation, lambda controller: work(controller, resource_id))
        if operation.outcome == REFUSED:
            held[resource_id] = made

    def _begin(self, kind: str, act: str, name: str) -> Operation:
        operation = Operation(kind, act, name, self._world.now_s)
        self._population.operations.append(operation)
        return operation

    async def _settle(self, operation: Operation, work: Call[Any]) -> Any:
        what = f"{operation.act} {operation.kind} {operation.name}"
        try:
            answer = await self._call(work)
        except Unavailable as error:
            operation.why = error.message
        except NotFound as error:
            if operation.act == DELETE and error.metadata.get("tries") != "0":
                operation.outcome, answer = DONE, None  # an earlier try has done it
            else:
                operation.outcome, operation.why = REFUSED, error.message
        except SkyrackError as error:
            operation.outcome, operation.why = REFUSED, f"{error.reason} {error.message}"
        else:
            operation.outcome = DONE
        operation.answered_s = self._world.now_s
        self._world.note(self._name, f"{what}: {operation.outcome} {operation.why}")
        return answer if operation.outcome == DONE else None

    async def _try(self, what: str, work: Call[Any]) -> None:
        """Something that leaves nothing behind to count."""
        try:
            await self._call(work)
        except SkyrackError as error:
            what += f": {error.reason}"
        self._world.note(self._name, what)

    def _any(self, kind: str) -> str:
        held = self._tenant.held[kind]
        return self._rng.choice(list(held)) if held else ""

    # ---- acts

    async def _create_server(self) -> None:
        tenant, volume_id = self._tenant, self._any("volume") if self._rng.random() < 0.3 else ""
        flavor_id, drive = self._rng.choice(tenant.flavor_ids), self._rng.random() < 0.3

        async def work(controller: Controller, name: str, once: Once) -> Any:
            new = NewServer(
                name, flavor_id, tenant.image_id, networks=(Wish(tenant.network_id),), config_drive=drive,
                volume_ids=(volume_id,) if volume_id else (),
            )  # fmt: skip
            return await controller.servers.create(tenant.caller, new, once)

        await self._create("server", work)

    async def _delete_server(self) -> None:
        await self._delete("server", lambda c, i: c.servers.delete(self._tenant.caller, i))

    async def _switch_server(self) -> None:
        server_id, verb = self._any("server"), self._rng.choice(("start", "stop", "reboot"))
        more = {"hard": self._rng.random() < 0.5} if verb == "reboot" else {}
        if server_id:
            await self._try(f"{verb} {server_id}", lambda c: getattr(c.servers, verb)(self._tenant.caller, server_id, **more))

    async def _create_volume(self) -> None:
        image_id = self._tenant.image_id if self._rng.random() < 0.5 else ""
        await self._create(
            "volume", lambda c, name, once: c.volumes.create(self._tenant.caller, name, VOLUME_GIB, image_id, once)
        )

    async def _delete_volume(self) -> None:
        await self._delete("volume", lambda c, i: c.volumes.delete(self._tenant.caller, i))

    async def _attach(self) -> None:
        server_id, volume_id = self._any("server"), self._any("volume")
        once = Once(f"{self._name}-{self._population.next_number()}", "AttachVolume", f"{server_id} {volume_id}")
        if server_id and volume_id:
            await self._try(
                f"attach {volume_id} to {server_id}",
                lambda c: c.volumes.attach(self._tenant.caller, server_id, volume_id, once),
            )

    async def _detach(self) -> None:
        volume_id = self._any("volume")

        async def work(controller: Controller) -> None:
            view = await controller.volumes.get(self._tenant.caller, volume_id)
            if view.attachment is not None:
                await controller.volumes.detach(self._tenant.caller, view.attachment.server_id, volume_id)

        if volume_id:
            await self._try(f"detach {volume_id}", work)

    async def _create_floating_ip(self) -> None:
        tenant, server_id = self._tenant, self._any("server") if self._rng.random() < 0.5 else ""
        await self._create(
            "floating_ip",
            lambda c, _name, once: c.floating_ips.create(tenant.caller, tenant.external_id, once, server_id=server_id),
        )

    async def _map_floating_ip(self) -> None:
        floating_ip_id, server_id = self._any("floating_ip"), self._any("server")
        if floating_ip_id:
            await self._try(
                f"map {floating_ip_id} to {server_id or 'nothing'}",
                lambda c: c.floating_ips.update(self._tenant.caller, floating_ip_id, server_id=server_id),
            )

    async def _delete_floating_ip(self) -> None:
        await self._delete("floating_ip", lambda c, i: c.floating_ips.delete(self._tenant.caller, i))

    async def _create_keypair(self) -> None:
        await self._create("keypair", lambda c, name, once: c.keypairs.create(self._tenant.caller, name, PUBLIC_KEY, once))

    async def _delete_keypair(self) -> None:
        await self._delete("keypair", lambda c, i: c.keypairs.delete(self._tenant.caller, i))

    async def _look(self) -> None:
        """What was acknowledged and not deleted is there for everyone who reads it."""
        keypair_id = self._any("keypair")
        if keypair_id:
            try:
                await self._call(lambda c: c.keypairs.get(self._tenant.caller, keypair_id))
            except NotFound:
                if keypair_id in self._tenant.held["keypair"]:
                    raise AssertionError(f"keypair {keypair_id} was acknowledged and is not found") from None
            except Unavailable:
                pass
