"""Clients at work: each makes and deletes things, one call after the other, and writes down what it was told."""

from __future__ import annotations

import asyncio
import base64
import random
import struct
import time
from dataclasses import dataclass, field

from skyrack.client import Cloud
from skyrack.client.connection import Patience
from skyrack.client.errors import CloudError
from tests.torture.history import CREATE, DELETE, DONE, Operation

_KEY = struct.pack(">I11sI32s", 11, b"ssh-ed25519", 32, bytes(32))
PUBLIC_KEY = f"ssh-ed25519 {base64.b64encode(_KEY).decode()}"
PATIENCE = Patience(first_s=60.0, total_s=60.0)
PAUSE_S = 0.02
KEPT_MAX = 5  # things of a kind that a client lets live


@dataclass
class Load:
    """What all clients did. `server_needs`: flavor, image and network of new servers."""

    server_needs: dict[str, str]
    operations: list[Operation] = field(default_factory=list)
    stopping: bool = False

    @property
    def last_answer_s(self) -> float:
        return max((o.answered_s for o in self.operations), default=0.0)

    def answered_after(self, moment_s: float) -> list[Operation]:
        return [o for o in self.operations if o.answered_s >= moment_s and o.outcome == DONE]


class Client:
    def __init__(self, number: int, seed: int, cloud: Cloud, load: Load) -> None:
        self._number, self._cloud, self._load = number, cloud, load
        self._rng = random.Random(f"{seed}/client-{number}")
        self._made = 0
        self._mine: dict[str, list[Operation]] = {"keypair": [], "server": []}

    async def run(self) -> None:
        """Until the load is told to stop."""
        while not self._load.stopping:
            kind = "server" if self._rng.random() < 0.3 else "keypair"
            mine = self._mine[kind]
            if len(mine) >= KEPT_MAX or (mine and self._rng.random() < 0.3):
                await self._delete(mine.pop(self._rng.randrange(len(mine))))
            else:
                await self._create(kind)
            await asyncio.sleep(self._rng.uniform(0, 2 * PAUSE_S))

    async def _create(self, kind: str) -> None:
        self._made += 1
        operation = self._begin(kind, CREATE, f"{kind[0]}-{self._number}-{self._made}")
        try:
            if kind == "server":
                needs = self._load.server_needs
                made = await self._cloud.servers.create(operation.name, flavor=needs["flavor"], image=needs["image"])
                operation.resource_id = made.id
            else:
                operation.resource_id = (await self._cloud.keypairs.create(operation.name, public_key=PUBLIC_KEY)).id
        except CloudError as error:
            operation.why = f"{type(error).__name__}: {error}"
            return
        self._end(operation)
        self._mine[kind].append(operation)

    async def _delete(self, made: Operation) -> None:
        operation = self._begin(made.kind, DELETE, made.name)
        try:
            await (self._cloud.servers if made.kind == "server" else self._cloud.keypairs).delete(made.resource_id)
        except CloudError as error:
            operation.why = f"{type(error).__name__}: {error}"
            return
        self._end(operation)

    def _begin(self, kind: str, act: str, name: str) -> Operation:
        operation = Operation(kind, act, name, time.monotonic())
        self._load.operations.append(operation)
        return operation

    def _end(self, operation: Operation) -> None:
        operation.answered_s, operation.outcome = time.monotonic(), DONE
