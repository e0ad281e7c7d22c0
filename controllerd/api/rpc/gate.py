"""The way into every public method: whose token it is, and what the request's common fields mean."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from controllerd.app.cloud import Once
from controllerd.domain.page import Page
from controllerd.domain.policy import Caller
from controllerd.store.event import acting_user
from daemonkit.errors import Forbidden, InvalidArgument, Unauthenticated
from daemonkit.tls import peer

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")
M = TypeVar("M", bound=Message)

RENDERED_AT_ONCE = 64

ORIGIN_KEY = "x-skyrack-origin"  # metadata: whom a controller forwards a call for
ORIGIN_LENGTH_MAX = 100


class Authenticator(Protocol):
    async def caller_of(self, token: str) -> Caller:
        """Errors: Unauthenticated."""


class Gate:
    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def caller(self, context: Context) -> Caller:
        """Errors: Unauthenticated."""
        caller = await self._authenticator.caller_of(token_of(context))
        acting_user.set(caller.user_id)
        return caller


def token_of(context: Context) -> str:
    """Errors: Unauthenticated without "authorization: Bearer TOKEN", or with several: who is meant would be a guess."""
    given = [str(value) for key, value in context.invocation_metadata() or () if key == "authorization"]
    if len(given) > 1:
        raise Unauthenticated("metadata 'authorization' is given more than once")
    scheme, _, token = (given or [""])[0].partition(" ")
    if scheme.lower() == "bearer" and token:
        return token
    raise Unauthenticated("metadata 'authorization: Bearer TOKEN' is missing; make one with IdentityService.CreateToken")


def origin(context: Context) -> str:
    """The caller's address without its port; of a forwarded call, that of who called the other controller.

    Only another controller is believed about that, as its certificate shows: this address is what logins are slowed down by.
    """
    given = [str(value) for key, value in context.invocation_metadata() or () if key == ORIGIN_KEY]
    if len(given) == 1 and len(given[0]) <= ORIGIN_LENGTH_MAX and is_controller(context):
        return given[0]
    return str(context.peer()).rpartition(":")[0]


def is_controller(context: Context) -> bool:
    """Whether the caller showed a certificate with the role of a controller."""
    try:
        return "controller" in peer(context).roles
    except (Forbidden, ValueError):
        return False


def once(request: Message, *secret_fields: str) -> Once:
    """The idempotency key of a create request, with the fingerprint of its other fields but the secret ones.

    A fingerprint is stored, and one over a password would let it be guessed offline.
    """
    key: str = request.idempotency_key  # type: ignore[attr-defined]
    bare = type(request)()
    bare.CopyFrom(request)
    for field in ("idempotency_key", *secret_fields):
        bare.ClearField(field)
    fingerprint = hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()
    return Once(key, request.DESCRIPTOR.name, fingerprint)


def page(request: Any) -> Page:
    return Page.parse(request.page_size, request.page_token)


async def rendered(render: Callable[[T], M], items: Sequence[T]) -> list[M]:
    """A page. Others have their turn in between: a thousand messages take longer than they may wait."""
    messages: list[M] = []
    for first in range(0, len(items), RENDERED_AT_ONCE):
        messages += [render(item) for item in items[first : first + RENDERED_AT_ONCE]]
        await asyncio.sleep(0)
    return messages


def given(request: Message, *fields: str) -> dict[str, Any]:
    """The optional fields that the caller set."""
    return {f: getattr(request, f) for f in fields if request.HasField(f)}


def seconds_of(field: str, stamp: Timestamp) -> float:
    """0 for one that was not given. Errors: InvalidArgument for one that is no time."""
    try:
        return stamp.ToNanoseconds() / 1e9
    except ValueError:
        raise InvalidArgument(field, "is not a time in the years 1 to 9999") from None


def timestamp(seconds: float) -> Timestamp | None:
    """None for 0: never."""
    if not seconds:
        return None
    stamp = Timestamp()
    stamp.FromMicroseconds(round(seconds * 1e6))
    return stamp
