"""gRPC as all daemons use it: options, servers with health and reflection, errors, request ids.

Options come from measurements: SO_REUSEPORT is off (a second server on the port must fail, not take half the calls), and
the ping timeout is set beside the keepalive timeout (else a hung peer is seen only after 60 s).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from daemonkit import errors, metrics
from daemonkit.log import request_id

log = logging.getLogger(__name__)

_KEEPALIVE = [
    ("grpc.keepalive_time_ms", 4000),
    ("grpc.keepalive_timeout_ms", 4000),
    ("grpc.http2.ping_timeout_ms", 4000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", 8 << 20),
]
SERVER_OPTIONS = [
    *_KEEPALIVE,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
]
CLIENT_OPTIONS = [*_KEEPALIVE, ("grpc.use_local_subchannel_pool", 1), ("grpc.http2.max_pings_without_data", 0)]

UNWIND_S = 1.0  # for calls that were ended to let go of what they hold
DOMAIN = "skyrack"
# Trailing metadata has 8 KiB for all; a message is in it twice, once in base64 and once with % escapes.
MESSAGE_BYTES_MAX = 1000
VALUE_BYTES_MAX = 200
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Calls that change nothing; they are logged only when they fail, or at level debug.
_READS = re.compile(r"/(Get|List|Watch|Check|ServerReflection)\w*$")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic for the type checker only

# The one table from our errors to gRPC codes; the most specific class wins.
CODES: dict[type[errors.SkyrackError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NoValidHost: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.OutOfSpace: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NetworkFailed: grpc.StatusCode.INTERNAL,
    errors.StorageFailed: grpc.StatusCode.INTERNAL,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.NotLeader: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Fenced: grpc.StatusCode.ABORTED,
}


def code_of(error: errors.SkyrackError) -> grpc.StatusCode:
    return next((CODES[cls] for cls in type(error).__mro__ if cls in CODES), grpc.StatusCode.INTERNAL)


def to_status(error: errors.SkyrackError) -> Any:
    """A rich status: ErrorInfo(reason, metadata), BadRequest naming the field, RetryInfo: each where there is one."""
    number, _text = code_of(error).value
    metadata = {key: _short(value, VALUE_BYTES_MAX) for key, value in error.metadata.items()}
    status = status_pb2.Status(code=number, message=_short(error.message, MESSAGE_BYTES_MAX))
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if isinstance(error, errors.InvalidArgument):
        why = _short(error.why, VALUE_BYTES_MAX)
        violation = error_details_pb2.BadRequest.FieldViolation(field=_short(error.field, VALUE_BYTES_MAX), description=why)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, errors.Unavailable) and error.retry_s > 0:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_s * 1000))
        status.details.add().Pack(retry)
    return rpc_status.to_status(status)


def _short(text: str, bytes_max: int) -> str:
    return text.encode(errors="replace")[:bytes_max].decode(errors="ignore")


def from_rpc_error(error: grpc.RpcError) -> errors.SkyrackError:
    """The error a peer of ours raised; Unavailable for everything the transport did (but Forbidden, Unauthenticated)."""
    status = _rich_status(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            return _rebuild(info.reason, status.message, dict(info.metadata), status)
    code = error.code()
    plain = {
        grpc.StatusCode.PERMISSION_DENIED: errors.Forbidden,
        grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    }.get(code, errors.Unavailable)
    return plain(f"{code.name.lower()}: {error.details()}")


def _rich_status(error: grpc.RpcError) -> Any:
    """None where the peer sent no details, or some that contradict the status."""
    try:
        return rpc_status.from_call(error)
    except (ValueError, DecodeError):
        return None


def _rebuild(reason: str, message: str, metadata: dict[str, str], status: Any) -> errors.SkyrackError:
    """Without the class's own __init__: its arguments are already in the message and the metadata."""
    cls = errors.BY_REASON.get(reason, errors.SkyrackError)
    rebuilt = cls.__new__(cls)
    errors.SkyrackError.__init__(rebuilt, message)
    rebuilt.metadata = metadata
    if isinstance(rebuilt, errors.InvalidArgument):
        rebuilt.field = metadata.get("field", "")
        rebuilt.why = message.removeprefix(f"{rebuilt.field}: ")
    if isinstance(rebuilt, errors.NotLeader):
        epoch = metadata.get("epoch", "")
        rebuilt.leader, rebuilt.epoch = metadata.get("leader", ""), int(epoch) if epoch.isdecimal() else 0
    if isinstance(rebuilt, errors.Unavailable):
        rebuilt.retry_s = _retry_s(status)
    return rebuilt


def _retry_s(status: Any) -> float:
    retry = error_details_pb2.RetryInfo()
    found = any(detail.Unpack(retry) for detail in status.details)
    return retry.retry_delay.ToMilliseconds() / 1000 if found else 0.0


class Guard(grpc.aio.ServerInterceptor):
    """Around every method: request id in and out, our errors to statuses, unknown ones to INTERNAL, counts and times."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._calls = _Calls()

    def end(self) -> None:
        """Every call under way: UNAVAILABLE."""
        self._calls.end()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        metadata = handler_call_details.invocation_metadata or ()
        given = next((str(value) for key, value in metadata if key == "x-request-id"), "")
        rid = given if _REQUEST_ID.fullmatch(given) else self._new_id()
        return _guarded(handler, handler_call_details.method, rid, self._calls)


class _Calls:
    """Those under way; each has a task of its own."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended: set[asyncio.Task[Any]] = set()

    def begin(self) -> None:
        self._tasks.add(_this_task())

    def finish(self, error: BaseException | None) -> BaseException | None:
        """What the call ended with, as its caller is to see it."""
        task = _this_task()
        ended = task in self._ended
        self._tasks.discard(task)
        self._ended.discard(task)
        if ended and isinstance(error, asyncio.CancelledError):
            task.uncancel()
            return errors.Unavailable("this daemon is stopping; whether the call was carried out is not known")
        return error

    def end(self) -> None:
        for task in self._tasks - self._ended:
            self._ended.add(task)
            task.cancel()


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _guarded(handler: Handler, method: str, rid: str, calls: _Calls) -> Handler:
    act: Any = handler.unary_unary or handler.stream_unary or handler.unary_stream or handler.stream_stream

    async def once(request: Any, context: Context) -> Any:
        async with _Watched(method, rid, context, calls):
            return await act(_whole(request), context)

    async def many(request: Any, context: Context) -> None:
        async with _Watched(method, rid, context, calls):
            if inspect.iscoroutinefunction(act):  # writes its answers to the context by itself
                await act(request, context)
                return
            async for message in act(_whole(request), context):
                await context.write(message)

    parse = _tolerant(handler.request_deserializer, handler.request_streaming)
    return like(handler, many if handler.response_streaming else once, parse)


def like(handler: Handler, act: Any, parse: Callable[[bytes], Any] | None) -> Handler:
    """One that streams as `handler` does and answers with `act`; `parse`: its requests."""
    kind: Any = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    made: Handler = kind(act, parse, handler.response_serializer)
    return made


def _whole(request: Any) -> Any:
    """Errors: InvalidArgument, as `_tolerant` left it."""
    if isinstance(request, errors.InvalidArgument):
        raise request
    return request


def _tolerant(parse: Callable[[bytes], Any] | None, streaming: bool) -> Callable[[bytes], Any] | None:
    """Bytes that are no message are the caller's fault, not INTERNAL. In a stream the method meets the error where it reads; a
    single request is parsed before the method is called, so the error goes in its place."""

    if parse is None:
        return None

    def parsed(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            error = errors.InvalidArgument("request", "is not a message of the type that this method takes")
        if streaming:
            raise error
        return error

    return parsed


class _Watched:
    """One call. Each has a task of its own, so the request id needs no reset."""

    def __init__(self, method: str, rid: str, context: Context, calls: _Calls) -> None:
        self._method, self._rid, self._context, self._calls = method, rid, context, calls

    async def __aenter__(self) -> None:
        self._calls.begin()
        request_id.set(self._rid)
        self._start_s = time.perf_counter()
        self._context.set_trailing_metadata((("x-request-id", self._rid),))

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        error = self._calls.finish(error)
        told = self._told(error)
        code = "OK" if error is None else "ABORTED_BY_METHOD" if isinstance(error, grpc.aio.AbortError) else "CANCELLED"
        code = code_of(told).name if told else code
        seconds = time.perf_counter() - self._start_s
        metrics.RPC_S.labels(self._method, code).observe(seconds)
        level = logging.DEBUG if code == "OK" and _READS.search(self._method) else logging.INFO
        log.log(level, "call", extra={"method": self._method, "code": code, "ms": round(seconds * 1000, 1)})
        if told is not None:
            status = to_status(told)
            trailing = (*status.trailing_metadata, ("x-request-id", self._rid))
            await self._context.abort(status.code, status.details, trailing)

    def _told(self, error: BaseException | None) -> errors.SkyrackError | None:
        """What the caller learns of `error`: nothing of what is inside us but where to look for it in the log."""
        if not isinstance(error, Exception) or isinstance(error, grpc.aio.AbortError):
            return None
        if isinstance(error, errors.SkyrackError) and any(cls in CODES for cls in type(error).__mro__):
            return error
        log.error("internal error", exc_info=error, extra={"method": self._method})
        return errors.SkyrackError(f"internal error, request id {self._rid}")


class Server:
    """A gRPC server with health and reflection. `bind` fails when the port is taken."""

    def __init__(self, new_id: Callable[[], str], interceptors: Sequence[grpc.aio.ServerInterceptor] = ()) -> None:
        self._guard = Guard(new_id)
        self.grpc = grpc.aio.server(interceptors=[self._guard, *interceptors], options=SERVER_OPTIONS)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)

    def bind(self, address: str, credentials: grpc.ServerCredentials) -> int:
        """Listens on "host:port"; gives the port. Errors: ConfigError."""
        try:
            return self.grpc.add_secure_port(address, credentials)
        except RuntimeError:
            raise errors.ConfigError(f"cannot listen on {address}: in use, or not an address of this machine") from None

    async def start(self, service_names: Sequence[str]) -> None:
        """`service_names`: full names ("skyrack.v1.ServerService") for reflection and health."""
        reflection.enable_server_reflection([*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME], self.grpc)
        await self.grpc.start()
        for name in ("", *service_names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def tell(self, name: str, serving: bool) -> None:
        """Health of `name`, which need not be a service. Those given to `start` are SERVING from then on."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(name, status)

    async def stop(self, grace_s: float = 1.0) -> None:
        """Calls under way have so long to end. Then they are ended; by gRPC, which tells a log of it, only if that fails."""
        await self._health.enter_graceful_shutdown()
        ending = asyncio.get_running_loop().call_later(grace_s, self._guard.end)
        try:
            await self.grpc.stop(grace_s + UNWIND_S)
        finally:
            ending.cancel()


def channel(address: str, credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
    return grpc.aio.secure_channel(address, credentials, options=CLIENT_OPTIONS)


def with_request_id() -> tuple[tuple[str, str], ...]:
    """Metadata that carries the request id of the work at hand to the next daemon."""
    rid = request_id.get()
    return (("x-request-id", rid),) if rid else ()
