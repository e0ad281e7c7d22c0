"""Agent streams without sockets, for simulation and tests: the ports of `daemonkit.transport`, over queues.

Delivery is in order and takes the link's delay. As over TCP, a message is either delivered or the stream ends; `lose` is for
the tests that want to know what happens when a peer throws a message away. A held link (a cable pulled) delivers nothing and
tells nobody, until the ping timeout ends its streams; a cut one (a connection reset) ends them at once and refuses dials.
Everything runs on the event loop and nothing is random, so a run under a virtual clock can be repeated.

Each end's code runs in the context (`contextvars`) of its own side, that of `listen` or of `dial`, and what carries messages in
the network's: a simulation that stops one side stops neither the other nor what is under way.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from daemonkit.errors import SkyrackError, Unavailable
from daemonkit.tls import Identity
from daemonkit.transport import AgentStream, ControllerStream
from skyrack.v1 import agent_pb2

PING_TIMEOUT_S = 8.0  # as keepalive time and timeout of `daemonkit.rpc` together
WINDOW = 64  # messages under way in one direction; further senders wait

Message = agent_pb2.AgentMessage | agent_pb2.ControllerMessage
Handler = Callable[[ControllerStream, Identity], Awaitable[None]]
M = TypeVar("M", agent_pb2.AgentMessage, agent_pb2.ControllerMessage)


class Link:
    """The way between one node and one address, both directions. `delay_s` and `lose` may be set at any time."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.lose: Callable[[Message], bool] = lambda message: False
        self._up = True
        self._open = asyncio.Event()
        self._open.set()
        self._streams: dict[_Stream, None] = {}  # in the order of their beginnings

    def cut(self) -> None:
        """Ends every stream and refuses new ones until `mend`."""
        self._up = False
        for stream in list(self._streams):
            stream.end(Unavailable("connection reset"))

    def hold(self) -> None:
        """Nothing gets through any more, and nobody is told; streams end by the ping timeout."""
        self._open.clear()

    def mend(self) -> None:
        self._up = True
        self._open.set()

    async def passage(self) -> None:
        """Waits until the link lets something through. Errors: Unavailable when cut, or held for too long."""
        try:
            async with asyncio.timeout(PING_TIMEOUT_S):
                await self._open.wait()
        except TimeoutError:
            raise Unavailable("ping timeout") from None
        if not self._up:
            raise Unavailable("connection refused")

    def attach(self, stream: _Stream) -> None:
        self._streams[stream] = None

    def detach(self, stream: _Stream) -> None:
        self._streams.pop(stream, None)


class _Pipe(Generic[M]):
    """One direction of a stream."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._room = asyncio.Semaphore(WINDOW)
        self._sent: asyncio.Queue[tuple[float, M]] = asyncio.Queue()
        self._arrived: asyncio.Queue[M | SkyrackError] = asyncio.Queue()
        self._why: SkyrackError | None = None

    def end(self, why: SkyrackError) -> None:
        if self._why is None:
            self._why = why
            self._arrived.put_nowait(why)
            self._room.release()

    async def send(self, message: M) -> None:
        await self._room.acquire()
        if self._why is not None:
            self._room.release()  # the next one who waits shall hear of it too
            raise self._why
        due_s = asyncio.get_running_loop().time() + self._link.delay_s
        self._sent.put_nowait((due_s, copy.deepcopy(message)))

    async def receive(self) -> M:
        """What arrived before the end is still read."""
        item = await self._arrived.get()
        if isinstance(item, SkyrackError):
            self._arrived.put_nowait(item)
            raise item
        self._room.release()
        return item

    async def drained(self) -> None:
        """Waits until all that was sent has arrived."""
        await self._sent.join()
        await asyncio.sleep(self._link.delay_s)

    async def carry(self) -> None:
        """Moves messages until the stream ends."""
        loop = asyncio.get_running_loop()
        while True:
            due_s, message = await self._sent.get()
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            await self._link.passage()
            if self._link.lose(message):
                self._room.release()
            else:
                self._arrived.put_nowait(message)
            self._sent.task_done()


class _Stream:
    """A session as both ends see it, and the tasks that carry it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.up: _Pipe[agent_pb2.AgentMessage] = _Pipe(link)
        self.down: _Pipe[agent_pb2.ControllerMessage] = _Pipe(link)
        self._ended = asyncio.Event()
        link.attach(self)

    def end(self, why: SkyrackError) -> None:
        self.up.end(why)
        self.down.end(why)
        self._ended.set()
        self._link.detach(self)

    async def live(self, handler: Handler, peer: Identity, theirs: contextvars.Context) -> None:
        """Runs the controller's side; its handler is cancelled when the agent or the link goes, as gRPC does it."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._carry(pipe)) for pipe in (self.up, self.down)]
                tasks.append(group.create_task(self._serve(handler, peer), context=theirs.copy()))
                await self._ended.wait()
                for task in tasks:
                    task.cancel()
        finally:
            self.end(Unavailable("the network is gone"))

    async def _carry(self, pipe: _Pipe[Any]) -> None:
        try:
            await pipe.carry()
        except SkyrackError as error:
            self.end(error)

    async def _serve(self, handler: Handler, peer: Identity) -> None:
        why: SkyrackError = Unavailable("the controller ended the session")
        try:
            await handler(MemoryControllerStream(self), peer)
        except SkyrackError as error:
            why = error
        except Exception as error:
            why = SkyrackError(f"internal error: {type(error).__name__}")
        await self.down.drained()  # as over TCP, what was said before the end arrives before the end
        self.end(why)


class MemoryAgentStream:
    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    async def send(self, message: agent_pb2.AgentMessage) -> None:
        await self._stream.up.send(message)

    async def receive(self) -> agent_pb2.ControllerMessage:
        return await self._stream.down.receive()

    async def close(self) -> None:
        self._stream.end(Unavailable("the agent ended the session"))


class MemoryControllerStream:
    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    async def send(self, message: agent_pb2.ControllerMessage) -> None:
        await self._stream.down.send(message)

    async def receive(self) -> agent_pb2.AgentMessage:
        return await self._stream.up.receive()


class MemoryNetwork:
    """Owns every stream: `async with MemoryNetwork() as network`. Leaving it ends them all."""

    def __init__(self) -> None:
        self._listeners: dict[str, tuple[Handler, contextvars.Context]] = {}
        self._links: dict[tuple[str, str], Link] = {}
        self._tasks = asyncio.TaskGroup()
        self._streams: dict[_Stream, tuple[str, asyncio.Task[None]]] = {}

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._context = contextvars.copy_context()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _address, task in self._streams.values():
            task.cancel()
        await self._tasks.__aexit__(kind, error, trace)

    def link(self, node: str, address: str) -> Link:
        return self._links.setdefault((node, address), Link())

    def listen(self, address: str, handler: Handler) -> None:
        """`handler` gets each session at `address`; a SkyrackError that it raises is what the agent receives."""
        self._listeners[address] = handler, contextvars.copy_context()

    def close(self, address: str) -> None:
        """The process at `address` died: its sessions end, dials are refused."""
        self._listeners.pop(address, None)
        for stream, (where, _task) in list(self._streams.items()):
            if where == address:
                stream.end(Unavailable("connection reset"))

    def dialer(self, peer: Identity) -> MemoryDialer:
        """For one node: `peer` is what its certificate would say."""
        return MemoryDialer(self, peer)

    async def dial(self, peer: Identity, address: str) -> AgentStream:
        """Errors: Unavailable when nobody listens at `address` or the link is cut."""
        link = self.link(peer.node, address)
        await asyncio.sleep(link.delay_s)
        await link.passage()
        if address not in self._listeners:
            raise Unavailable("connection refused")
        handler, theirs = self._listeners[address]
        stream = _Stream(link)
        task = self._tasks.create_task(stream.live(handler, peer, theirs), context=self._context)
        self._streams[stream] = (address, task)
        task.add_done_callback(lambda _task: self._streams.pop(stream))
        return MemoryAgentStream(stream)


class MemoryDialer:
    def __init__(self, network: MemoryNetwork, peer: Identity) -> None:
        self._network, self._peer = network, peer

    async def dial(self, address: str) -> AgentStream:
        return await self._network.dial(self._peer, address)
