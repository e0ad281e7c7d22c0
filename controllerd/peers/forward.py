"""Calls that came to a controller that does not lead, carried to the one that does.

Any method, as bytes, over mutual TLS to the leader's address for agents and controllers, where the same public services answer
to controllers only. What the leader says comes back unchanged: answers, status, details, trailing metadata.

While nobody leads, or the leader does not answer or serve yet, a call is held, for `hold_max_s` at most; a stream of requests
stays unread meanwhile. Then, or when too many are held: NoLeader. A call goes to the next leader only if it certainly was not
carried out: no connection was made, or the answer was NOT_LEADER. In doubt its client is told UNAVAILABLE. (A stream of
requests is not kept, so it is never sent again.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf import descriptor_pool

from controllerd.api.rpc.gate import ORIGIN_KEY, Context, origin
from controllerd.peers.link import Link
from daemonkit import rpc
from daemonkit.errors import NoLeader, NotLeader, Unavailable

ANSWER_S = 0.5  # left of a call's deadline when it is given up
AGAIN_S = 0.05
RETRY_S = 2.0  # what clients are told whose calls could not be held, or not for long enough

# Metadata that belongs to one hop.
_OF_THE_HOP = frozenset({"user-agent", "te", "content-type", "host", ORIGIN_KEY, "x-request-id"})
_OF_THE_HOP_BEGIN = ("grpc-", ":")
# Statuses that gRPC itself makes when a connection breaks.
_BROKEN = (
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN,
)  # fmt: skip

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic for the type checker only
Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True)
class ForwardSettings:
    """`held_max`, `held_bytes_max`: calls, and their requests together; `forwarded_...` count held ones too. Callers need not
    have shown a token yet."""

    hold_max_s: float = 15.0
    held_max: int = 1000
    held_bytes_max: int = 64 << 20
    forwarded_max: int = 4000
    forwarded_bytes_max: int = 128 << 20


class Forwarder(grpc.GenericRpcHandler):
    def __init__(self, link: Link, settings: ForwardSettings) -> None:
        self._link, self._settings = link, settings
        self._forwarded = 0
        self._forwarded_bytes = 0
        self._held = 0
        self._held_bytes = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        method = handler_call_details.method

        async def one(request: bytes, context: Context) -> None:
            with self._counted(), self._carrying(len(request)):
                await self._forward(method, request, context)

        async def many(_requests: Any, context: Context) -> None:
            with self._counted():
                await self._forward_stream(method, context)

        if _one_request(method):
            return grpc.unary_stream_rpc_method_handler(one)
        return grpc.stream_stream_rpc_method_handler(many)

    async def _forward(self, method: str, request: bytes, context: Context) -> None:
        metadata, end_s = _metadata(context), self._end_s(context)
        while True:
            channel = await self._serving(end_s, len(request))
            begin: Any = channel.unary_stream(method)
            call = begin(request, metadata=metadata, timeout=context.time_remaining())
            try:
                return await _relay(call, context)
            except NotLeader:  # it was not carried out
                self._link.doubt()
                if asyncio.get_running_loop().time() + AGAIN_S > end_s:
                    raise NoLeader(RETRY_S) from None
                await asyncio.sleep(AGAIN_S)

    async def _forward_stream(self, method: str, context: Context) -> None:
        channel = await self._serving(self._end_s(context), 0)
        call: Any = channel.stream_stream(method)(metadata=_metadata(context), timeout=context.time_remaining())
        sending = asyncio.create_task(self._pass_on(context, call))
        try:
            await _relay(call, context)
        except NotLeader:
            self._link.doubt()
            raise Unavailable("the leader leads no longer; nothing was carried out") from None
        finally:
            sending.cancel()
            await asyncio.wait([sending])

    async def _pass_on(self, context: Context, call: Any) -> None:
        """What the client sends, read no faster than the leader takes it. The call ends when there is no room for more."""
        while (message := await context.read()) is not grpc.aio.EOF:
            try:
                with self._carrying(len(message)):
                    await call.write(message)
            except Unavailable:
                call.cancel()
                return
        await call.done_writing()

    def _end_s(self, context: Context) -> float:
        """Of the loop's clock: until when the call may be held. Before its own deadline, so that its client learns why."""
        left_s = context.time_remaining()
        hold_s = self._settings.hold_max_s if left_s is None else min(self._settings.hold_max_s, left_s - ANSWER_S)
        return asyncio.get_running_loop().time() + hold_s

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._forwarded >= self._settings.forwarded_max:
            raise Unavailable("this controller forwards as many calls as it may")
        self._forwarded += 1
        try:
            yield
        finally:
            self._forwarded -= 1

    @contextmanager
    def _carrying(self, size: int) -> Iterator[None]:
        """A request of so many bytes is in memory. Errors: Unavailable when that is too much."""
        if self._forwarded_bytes + size > self._settings.forwarded_bytes_max:
            raise Unavailable("this controller forwards as much as it may")
        self._forwarded_bytes += size
        try:
            yield
        finally:
            self._forwarded_bytes -= size

    async def _serving(self, end_s: float, size: int) -> grpc.aio.Channel:
        """The way to the leader; the call is held until there is one. Errors: NoLeader."""
        if channel := self._link.serving():
            return channel
        with self._holding(size):
            while True:
                if channel := self._link.serving():
                    return channel
                if self._link.only_at_home:
                    raise NoLeader(AGAIN_S)
                rest_s = end_s - asyncio.get_running_loop().time()
                try:
                    async with asyncio.timeout(max(0.0, rest_s)):
                        await self._link.changed()
                except TimeoutError:
                    raise NoLeader(RETRY_S) from None

    @contextmanager
    def _holding(self, size: int) -> Iterator[None]:
        if self._held >= self._settings.held_max or self._held_bytes + size > self._settings.held_bytes_max:
            raise NoLeader(RETRY_S)
        self._held += 1
        self._held_bytes += size
        try:
            yield
        finally:
            self._held -= 1
            self._held_bytes -= size


async def _relay(call: Any, context: Context) -> None:
    """The leader's answers, then its status. Errors: NotLeader, Unavailable (the connection broke)."""
    try:
        while (message := await call.read()) is not grpc.aio.EOF:
            await context.write(message)
        context.set_trailing_metadata(await call.trailing_metadata())
    except grpc.RpcError as error:
        await _fail(error, context)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Unavailable("the call to the leader was ended; whether it was carried out is not known") from None
    finally:
        call.cancel()


async def _fail(error: Any, context: Context) -> None:
    trailing = error.trailing_metadata() or ()
    answered = any(key == "x-request-id" for key, _value in trailing)
    if answered and isinstance(told := rpc.from_rpc_error(error), NotLeader):
        raise told
    if error.code() in _BROKEN and not answered:
        raise Unavailable("the connection to the leader broke; whether the call was carried out is not known")
    await context.abort(error.code(), error.details() or "", tuple(trailing))


def _metadata(context: Context) -> Metadata:
    given = tuple((k, v) for k, v in context.invocation_metadata() or () if not _of_the_hop(k))
    return (*given, *rpc.with_request_id(), (ORIGIN_KEY, origin(context)))


def _of_the_hop(name: str) -> bool:
    return name in _OF_THE_HOP or name.startswith(_OF_THE_HOP_BEGIN)


def _one_request(method: str) -> bool:
    """Whether the method takes a single request; one that this software does not know is taken for a stream."""
    service, _, name = method[1:].partition("/")
    try:
        descriptor = descriptor_pool.Default().FindMethodByName(f"{service}.{name}")
    except KeyError:
        return False
    return not descriptor.client_streaming
