"""Rows to desired state, for many sessions at once.

Sessions that ask while one read is under way are served together by the next: in one transaction in a reader's thread, with
what is the same for all of them compiled once. A wire (see `desired.state`) is kept until a commit touches its network, and
what is a node's own until a commit touches the node; so what is sent is always what compiling everything afresh would give.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from controllerd.agents.desired.network import compile_network, compile_own, compile_wire, join
from controllerd.agents.desired.state import Own, State, Wire, items_of
from controllerd.domain.node import Node
from controllerd.store import agent_task
from controllerd.store.database import Database, Tx
from controllerd.store.node import NODES
from daemonkit.errors import Forbidden, SkyrackError
from skyrack.v1 import agent_pb2

BATCH_MAX = 32  # sessions a transaction: others want to read too

# Everything a node of that agent kind shall have: (tx, node id) -> objects.
Compile = Callable[[Tx, str], list[agent_pb2.DesiredObject]]


@dataclass(frozen=True)
class Wanted:
    """`sent`: what the agent was sent last. `touched`: whether the node itself was since. `held`: None for a delta, else the
    hash of what the agent has, b"" = unknown."""

    node: Node
    kind: str
    sent: State | None
    touched: bool
    held: bytes | None


@dataclass(frozen=True)
class Compiled:
    """`message`: without base and generation, None when there is nothing to say. `tasks`: (id, encoded, deadline) not ended
    yet."""

    state: State
    message: agent_pb2.DesiredState | None
    tasks: list[tuple[str, bytes, float]]


class Compilation:
    def __init__(self, database: Database, compilers: Mapping[str, Compile]) -> None:
        """`compilers`: by kind of agent."""
        self._db, self._compilers = database, compilers
        self._wires: dict[str, Wire] = {}
        self._outdated: set[str] = set()  # networks touched since their wires were compiled
        self._waiting: dict[asyncio.Future[Compiled], Wanted] = {}
        self._turn = asyncio.Lock()

    def forget(self, network_id: str) -> None:
        """The network was touched."""
        self._outdated.add(network_id)

    def outdated(self, network_ids: frozenset[str]) -> bool:
        return not self._outdated.isdisjoint(network_ids)

    async def compile(self, wanted: Wanted) -> Compiled:
        """Errors: Forbidden when the node is gone or its certificate was replaced; Unavailable without a store."""
        future: asyncio.Future[Compiled] = asyncio.get_running_loop().create_future()
        self._waiting[future] = wanted
        try:
            while not future.done():
                async with self._turn:
                    if not future.done():
                        await self._serve_waiting()
        finally:
            self._waiting.pop(future, None)
            future.cancel()  # who left asks for nothing any more
        return future.result()

    async def _serve_waiting(self) -> None:
        """For all who wait, by the first of them. If it is cancelled nothing was compiled, and the next one takes over."""
        batch = sorted(self._waiting.items(), key=lambda item: not item[1].touched)[:BATCH_MAX]
        outdated, self._outdated = self._outdated, set()
        work = _Work(self._compilers, {i: w for i, w in self._wires.items() if i not in outdated}, self._wires)
        try:
            answers = await self._db.read(lambda tx: [work.answer(tx, wanted) for _future, wanted in batch])
        except BaseException:
            self._outdated |= outdated
            raise
        self._wires = work.wires
        for (future, _wanted), answer in zip(batch, answers, strict=True):
            self._waiting.pop(future, None)
            if future.done():
                continue
            if isinstance(answer, SkyrackError):
                future.set_exception(answer)
            else:
                future.set_result(answer)


@dataclass
class _Work:
    """One transaction's. `wires` grows; `former` may be outdated, but most of a network is as it was."""

    compilers: Mapping[str, Compile]
    wires: dict[str, Wire]
    former: Mapping[str, Wire]

    def answer(self, tx: Tx, wanted: Wanted) -> Compiled | SkyrackError:
        try:
            state = self._state(tx, wanted)
        except SkyrackError as error:
            return error
        tasks = agent_task.outstanding(tx, wanted.node.id, wanted.kind) if wanted.touched else []
        return Compiled(state, _message(state, wanted), tasks)

    def _state(self, tx: Tx, wanted: Wanted) -> State:
        """Errors: Forbidden."""
        node_id, own = wanted.node.id, wanted.sent.own if wanted.sent else None
        if own is None or wanted.touched or own.whole:
            node = NODES.find(tx, node_id)
            if node is None or node.certificate_serial != wanted.node.certificate_serial:
                raise Forbidden("the certificate was replaced by a newer one, or the node removed", why="old")
            own = self._own(tx, wanted.kind, node_id)
        for network_id in own.networks:
            if network_id not in self.wires:
                self.wires[network_id] = compile_wire(tx, network_id, self.former.get(network_id))
        return join(tx, node_id, own, self.wires, wanted.sent)

    def _own(self, tx: Tx, kind: str, node_id: str) -> Own:
        compiler = self.compilers[kind]
        return compile_own(tx, node_id) if compiler is compile_network else Own(items_of(compiler(tx, node_id)))


def _message(state: State, wanted: Wanted) -> agent_pb2.DesiredState | None:
    if wanted.held is None and wanted.sent is not None:
        put, remove = state.delta(wanted.sent)
        if not put and not remove:
            return None
        return agent_pb2.DesiredState(put=_objects(put), remove=remove, hash=state.hash())
    digest = state.hash()
    if digest == wanted.held:
        return agent_pb2.DesiredState(hash=digest, same=True)
    return agent_pb2.DesiredState(hash=digest, put=_objects(item.body for _key, item in state.items()))


def _objects(bodies: Iterable[bytes]) -> list[agent_pb2.DesiredObject]:
    return [agent_pb2.DesiredObject.FromString(body) for body in bodies]
