"""How a call gets to the leading controller, once.

Endpoints are tried in turn; a standby names the leader and is believed at once. Who retries what:
- a connection that could not be made has carried nothing, so any call goes to the next endpoint;
- NOT_LEADER and NO_LEADER mean that the call was not carried out, so any call follows the leader, or waits for one;
- a connection that breaks under a call, or UNAVAILABLE: only calls marked `Retry.SAFE` are sent again (reads, absolute updates,
  deletes, creates with an idempotency key), the same bytes under the same request id;
- UNAUTHENTICATED: one new token by password, then the call again;
- anything else is the answer.
Every retry is bounded by `Patience`, and comes no sooner than the cloud advises (google.rpc.RetryInfo).
"""

from __future__ import annotations

import asyncio
import enum
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from skyrack.client import errors

T = TypeVar("T")
M = TypeVar("M", bound=Message)
Metadata = tuple[tuple[str, str], ...]
Send = Callable[[grpc.aio.Channel, Metadata], Awaitable[T]]

# While a call is under way a controller that hangs is noticed in about 4 s: by then another one leads.
_OPTIONS = [
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
]


_PASSING = (errors.Unreachable, errors.Unavailable, errors.NotLeader)
_BREAKS_MAX = 8
_RETIRED_MAX = 8


class Retry(enum.Enum):
    SAFE = "safe"
    """Sending it twice is as good as once."""
    ONCE = "once"
    """Must not be sent again once it may have arrived."""


@dataclass(frozen=True)
class Patience:
    """Bounds. `first_s` and `total_s` bound what one call may spend between its tries (connecting, pausing): with a cloud that
    has never answered, and with one that has. `call_s` bounds each try."""

    connect_s: float = 3.0
    first_s: float = 5.0
    total_s: float = 20.0
    call_s: float = 30.0
    pause_min_s: float = 0.1
    pause_max_s: float = 2.0
    redirects_max: int = 4


class _Attempts:
    """The tries of one call: how much time went into retrying, how long the next pause is."""

    def __init__(self, patience: Patience, retry: Retry) -> None:
        self.retry = retry
        self.spent_s = 0.0
        self.pause_s = patience.pause_min_s
        self.pause_max_s = patience.pause_max_s
        self.redirects = 0
        self.renewed_token = False
        self.may_have_arrived = False

    async def pause(self, error: errors.CloudError, limit_s: float) -> None:
        """Waits, longer each time. Raises `error` when the time is up."""
        pause_s = max(self.pause_s, error.retry_s)
        if self.spent_s + pause_s > limit_s:
            error.resent = self.may_have_arrived
            raise error
        self.spent_s += pause_s
        # Not before the advised time, and not all at it.
        await asyncio.sleep(max(error.retry_s, pause_s * random.uniform(0.5, 1.0)) + error.retry_s * random.uniform(0.0, 0.2))
        self.pause_s = min(self.pause_s * 2, self.pause_max_s)

    def lasted(self, try_s: float, patience: Patience) -> None:
        """A try that was let in and stayed for long, as a watch does that had nothing to tell, starts the patience afresh."""
        if try_s > patience.total_s:
            self.spent_s, self.pause_s, self.redirects = 0.0, patience.pause_min_s, 0


class Login(Protocol):
    """Where a token comes from."""

    async def token(self, connection: Connection) -> str:
        """The token to send. Errors: CloudError when there is none to be had."""

    def forget(self, token: str) -> bool:
        """The cloud refused `token`. True: asking again gives a new one."""


class Connection:
    """The way to one cloud. Lives in one event loop; channels are made when first needed."""

    def __init__(self, endpoints: Sequence[str], ca: bytes, login: Login, patience: Patience | None = None) -> None:
        self._endpoints = list(endpoints)
        self._current = self._endpoints[0]
        self._credentials = grpc.ssl_channel_credentials(ca)
        self._login = login
        self._patience = patience or Patience()
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._retired: list[grpc.aio.Channel] = []
        self._answered = False

    async def close(self) -> None:
        channels = [*self._channels.values(), *self._retired]
        self._channels, self._retired = {}, []
        for channel in channels:
            await channel.close()

    async def call(
        self, method: str, request: Message, response: type[M], *, retry: Retry = Retry.SAFE, with_token: bool = True
    ) -> M:
        """One unary call; `method` is "ServerService/GetServer". Errors: CloudError."""

        async def send(channel: grpc.aio.Channel, metadata: Metadata) -> M:
            stub = channel.unary_unary(
                f"/skyrack.v1.{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=response.FromString,
            )
            answer: M = await stub(request, metadata=metadata, timeout=self._patience.call_s)
            return answer

        return await self.run(send, retry=retry, with_token=with_token)

    async def stream(self, method: str, request: Callable[[], Message], response: type[M]) -> AsyncIterator[M]:
        """A server stream that outlives broken connections: `request()` is asked again where to go on.

        Errors: CloudError, also when the stream breaks `_BREAKS_MAX` times without a message between.
        """
        breaks = 0
        while True:
            call, message = await self._begin_stream(method, request, response)
            try:
                while message is not grpc.aio.EOF:
                    breaks = 0
                    yield message
                    message = await call.read()
                return
            except grpc.aio.AioRpcError as error:
                fault = errors.from_rpc(error, "")
                breaks += 1
                if not isinstance(fault, _PASSING) or breaks > _BREAKS_MAX:
                    raise fault from None
            finally:
                call.cancel()

    async def _begin_stream(self, method: str, request: Callable[[], Message], response: type[M]) -> tuple[Any, Any]:
        """The call and its first message (or EOF)."""

        async def send(channel: grpc.aio.Channel, metadata: Metadata) -> tuple[Any, Any]:
            first_request = request()
            stub = channel.unary_stream(
                f"/skyrack.v1.{method}",
                request_serializer=type(first_request).SerializeToString,
                response_deserializer=response.FromString,
            )
            call = stub(first_request, metadata=metadata)
            return call, await call.read()

        return await self.run(send, retry=Retry.SAFE)

    async def run(self, send: Send[T], *, retry: Retry, with_token: bool = True) -> T:
        """Carries `send` out on a channel to the leader, as the module says. Errors: CloudError."""
        request_id = uuid.uuid4().hex
        attempts = _Attempts(self._patience, retry)
        while True:
            # First: logging in may find the leader.
            token = await self._login.token(self) if with_token else ""
            address, began_s = self._current, time.monotonic()
            try:
                channel = await self._ready(address)
            except errors.Unreachable as error:
                attempts.spent_s += time.monotonic() - began_s
                self._next(address)
                await attempts.pause(error, self._limit_s())
                continue
            self._answered, began_s = True, time.monotonic()
            try:
                return await send(channel, _metadata(request_id, token))
            except grpc.RpcError as error:
                fault = errors.from_rpc(error, request_id)
            attempts.lasted(time.monotonic() - began_s, self._patience)
            if with_token and _wants_new_token(fault, attempts) and self._login.forget(token):
                attempts.renewed_token = True
                continue
            await self._after(fault, attempts, address, channel)

    async def _after(self, error: errors.CloudError, attempts: _Attempts, address: str, channel: grpc.aio.Channel) -> None:
        """Makes ready for another try, or raises `error`."""
        if isinstance(error, errors.NotLeader):
            await self._follow(error, attempts, address)
        elif isinstance(error, errors.Unreachable | errors.Unavailable) and attempts.retry is Retry.SAFE:
            attempts.may_have_arrived = True
            if isinstance(error, errors.Unreachable):
                await self._retire(address, channel)
            self._next(address)
            await attempts.pause(error, self._limit_s())
        else:
            error.resent = attempts.may_have_arrived
            raise error

    async def _follow(self, error: errors.NotLeader, attempts: _Attempts, address: str) -> None:
        attempts.redirects += 1
        if error.leader and error.leader != address and attempts.redirects <= self._patience.redirects_max:
            self._current = error.leader
            return
        self._next(address)
        await attempts.pause(error, self._limit_s())

    def blocking_channel(self) -> grpc.Channel:
        """To where the calls go now, for use in a thread. The caller closes it."""
        return grpc.secure_channel(self._current, self._credentials, options=_OPTIONS)

    def _limit_s(self) -> float:
        return self._patience.total_s if self._answered else self._patience.first_s

    def _next(self, failed: str) -> None:
        """The configured endpoint after `failed`; a leader heard of by name is followed by the first one."""
        if self._current == failed:
            place = self._endpoints.index(failed) + 1 if failed in self._endpoints else 0
            self._current = self._endpoints[place % len(self._endpoints)]

    async def _ready(self, address: str) -> grpc.aio.Channel:
        """A channel whose connection stands. Errors: Unreachable; the channel is then thrown away with its backoff."""
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = grpc.aio.secure_channel(address, self._credentials, options=_OPTIONS)
        try:
            async with asyncio.timeout(self._patience.connect_s):
                state = channel.get_state(try_to_connect=True)
                while state is not grpc.ChannelConnectivity.READY:
                    if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                        why = await _why(channel, address)
                        await self._retire(address, channel)
                        raise errors.Unreachable(f"cannot reach {address}: {why}")
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
        except TimeoutError:
            await self._retire(address, channel)
            raise errors.Unreachable(f"cannot reach {address}: no answer in {self._patience.connect_s:g} s") from None
        return channel

    async def _retire(self, address: str, channel: grpc.aio.Channel) -> None:
        """Later calls get a fresh channel; calls still on this one must end by themselves, for closing would cancel them."""
        if self._channels.get(address) is channel:
            del self._channels[address]
            self._retired.append(channel)
        if len(self._retired) > _RETIRED_MAX:
            await self._retired.pop(0).close()


async def _why(channel: grpc.aio.Channel, address: str) -> str:
    """What the transport says about a channel that did not connect: the text of a call that fails at once."""
    probe = channel.unary_unary("/grpc.health.v1.Health/Check", request_serializer=bytes, response_deserializer=bytes)
    try:
        await probe(b"", timeout=1.0)
    except grpc.aio.AioRpcError as error:
        text = (error.details() or "").rpartition("last error: ")[2]
        first = text.removeprefix("UNKNOWN: ").removeprefix(f"ipv4:{address}: ").partition("\n")[0]
        return first[:200] or error.code().name.lower()
    return "the connection came late"


def _wants_new_token(error: errors.CloudError, attempts: _Attempts) -> bool:
    return isinstance(error, errors.Unauthenticated) and not attempts.renewed_token


def _metadata(request_id: str, token: str) -> Metadata:
    pairs: Metadata = (("x-request-id", request_id),)
    return (*pairs, ("authorization", f"Bearer {token}")) if token else pairs
