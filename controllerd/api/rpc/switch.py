"""The switch in front of the services: while this controller leads they are its term's, else somebody else answers.

Each call is resolved at the moment it arrives. When the term is revoked no further call enters it; streams that would never
end by themselves are ended at once, so that their clients resume elsewhere; the rest has `GRACE_S` to end and is then ended
too. Such a call may have been carried out or not, so its client is told UNAVAILABLE. One that was resolved but had not begun
is told NOT_LEADER: it certainly was not.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import grpc

from controllerd.api.rpc.gate import Context
from daemonkit import rpc
from daemonkit.errors import Fenced, NotLeader, Unavailable

GRACE_S = 1.0
UNWIND_S = 1.0  # for ended calls to let go of what they hold

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic for the type checker only
Details: TypeAlias = grpc.HandlerCallDetails
# How generated code puts a servicer into a server, and the servicer.
Services = Mapping[str, tuple[Callable[[Any, Any], None], object]]
# Lets the caller of the method in, or raises Forbidden.
Admit = Callable[[str, Context], None]


class Switch(grpc.GenericRpcHandler):
    def __init__(
        self, service_names: Collection[str], fallback: grpc.GenericRpcHandler, admit: Admit = lambda _method, _context: None
    ) -> None:
        """`service_names`: full ones, those that this switch answers for. `admit` is asked before every call."""
        self._names, self._fallback, self._admit = frozenset(service_names), fallback, admit
        self._term: _Term | None = None

    def service(self, handler_call_details: Details) -> Handler | None:
        method = handler_call_details.method
        if service_of(method) not in self._names:
            return None
        if self._term is not None:
            return self.in_term(method)
        handler = self._fallback.service(handler_call_details)
        return None if handler is None else _wrapped(handler, _Entry(None, method, self._admit))

    def in_term(self, method: str) -> Handler | None:
        """What answers while a term leads; None without one, or when it knows no such method."""
        term = self._term
        handler = term.handlers.get(method) if term else None
        return None if handler is None else _wrapped(handler, _Entry(term, method, self._admit))

    @asynccontextmanager
    async def establish(self, services: Services) -> AsyncIterator[None]:
        """Inside, `services` (by full name) answer; on the way out every call they have is ended, in `GRACE_S` or so."""
        assert self._term is None, "one term at a time"
        self._term = term = _Term(services)
        try:
            yield
        finally:
            self._term = None
            await term.end()


class _Collector:
    """Stands where generated code expects a server, and keeps what is put into it: method -> handler."""

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {}

    def add_generic_rpc_handlers(self, _handlers: object) -> None:
        """The same handlers, in a shape that cannot be listed."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        self.handlers |= {f"/{service_name}/{name}": handler for name, handler in method_handlers.items()}


class _Term:
    """The calls that one term answers."""

    def __init__(self, services: Services) -> None:
        collector = _Collector()
        for add, servicer in services.values():
            add(servicer, collector)
        self.handlers = collector.handlers
        self._calls: dict[asyncio.Task[Any], bool] = {}  # -> whether its answer is a stream
        self._ended: set[asyncio.Task[Any]] = set()
        self._over = False
        self._idle = asyncio.Event()

    @contextmanager
    def call(self, streams: bool) -> Iterator[None]:
        """Around one call, which runs in the current task. Errors: NotLeader (before it), Unavailable (in it)."""
        if self._over:
            raise NotLeader("", 0)
        task = asyncio.current_task()
        assert task is not None
        self._calls[task] = streams
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._ended:
                raise
            task.uncancel()
            raise Unavailable("this controller leads no longer; whether the call was carried out is not known") from None
        except Fenced:  # of several transactions the first may have been made
            raise Unavailable("another controller leads now; whether the call was carried out is not known") from None
        finally:
            del self._calls[task]
            self._ended.discard(task)
            if self._over and not self._calls:
                self._idle.set()

    async def end(self) -> None:
        self._over = True
        self._cancel([task for task, streams in self._calls.items() if streams])
        try:
            await self._wait(GRACE_S)
        finally:
            self._cancel(list(self._calls))
        await self._wait(UNWIND_S)

    async def _wait(self, limit_s: float) -> None:
        """For the last call to be out. Not by asyncio.timeout: it fails in a task on which a cancellation is still counted."""
        if self._calls:
            waiting = asyncio.ensure_future(self._idle.wait())
            try:
                await asyncio.wait([waiting], timeout=limit_s)
            finally:
                waiting.cancel()

    def _cancel(self, tasks: Collection[asyncio.Task[Any]]) -> None:
        for task in tasks:
            if task not in self._ended:
                self._ended.add(task)
                task.cancel()


class _Entry:
    """What a call passes on its way in."""

    def __init__(self, term: _Term | None, method: str, admit: Admit) -> None:
        self._term, self._method, self._admit = term, method, admit

    @property
    def can_be_ended(self) -> bool:
        return self._term is not None

    @contextmanager
    def passed(self, context: Context, streams: bool) -> Iterator[None]:
        self._admit(self._method, context)
        if self._term is None:
            yield
            return
        with self._term.call(streams):
            yield


def _wrapped(handler: Handler, entry: _Entry) -> Handler:
    act: Any = handler.unary_unary or handler.stream_unary or handler.unary_stream or handler.stream_stream

    async def once(request: Any, context: Context) -> Any:
        with entry.passed(context, streams=False):
            return await act(request, context)

    async def many(request: Any, context: Context) -> None:
        with entry.passed(context, streams=True):
            if entry.can_be_ended:
                # Not with the first message: a call that is ended in the middle of that could not be given a status any more.
                await context.send_initial_metadata(())
            if inspect.iscoroutinefunction(act):  # writes its answers to the context by itself
                await act(request, context)
                return
            async for message in act(request, context):
                await context.write(message)

    return rpc.like(handler, many if handler.response_streaming else once, handler.request_deserializer)


def service_of(method: str) -> str:
    """ "/package.Service/Method" -> "package.Service"."""
    return method[1:].rpartition("/")[0]
