"""What every kind of resource can do: get, list by pages, find by id or name, be waited for, be deleted.

A noun's file says which messages its calls take; this one says what is the same for all.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from skyrack.client import errors
from skyrack.client.connection import Connection, Retry
from skyrack.client.wire import to_record
from skyrack.v1 import identity_pb2

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_POLL_MIN_S = 0.1
_POLL_MAX_S = 2.0


class Record(Protocol):
    """Every resource has an id."""

    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=Record)
M = TypeVar("M", bound=Message)
Ref = str | Record
Progress = Callable[[Any], None]


def id_of(ref: Ref | None) -> str:
    """The id of a record, an id itself, or "" for None."""
    if ref is None or isinstance(ref, str):
        return ref or ""
    return ref.id


def new_key() -> str:
    """An idempotency key: makes a create safe to send again."""
    return uuid.uuid4().hex


class Collection(ABC, Generic[R]):
    """The resources of one kind. `kind` is for people and errors, `service` the gRPC service, `record` what users get."""

    kind: ClassVar[str]
    service: ClassVar[str]
    record: type[R]

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @abstractmethod
    async def get(self, ref: Ref) -> R:
        """By id. Errors: NotFound."""

    @abstractmethod
    def list(self, *, name: str = "") -> AsyncIterator[R]:
        """The project's own and what is for everybody, page after page; `name` only those called so."""

    async def find(self, name_or_id: str) -> R:
        """The resource of that id, else of that name; of several the caller's project's, where that has one.

        Errors: NotFound; Ambiguous, which lists the ids.
        """
        if _UUID.fullmatch(name_or_id):
            try:
                return await self.get(name_or_id)
            except errors.NotFound:
                pass
        found: Sequence[R] = [row async for row in self.list(name=name_or_id) if self._name(row) == name_or_id]
        if len(found) > 1:
            found = await self._own(found) or found
        return self._only(found, name_or_id)

    async def _own(self, found: Sequence[R]) -> Sequence[R]:
        """Those of the caller's project: what another project shares, or is public, may be called the same."""
        if not hasattr(found[0], "project_id"):
            return ()
        token = await self._connection.call("IdentityService/GetToken", Empty(), identity_pb2.Token)
        return [row for row in found if getattr(row, "project_id", "") == token.project_id]

    def _only(self, found: Sequence[R], name: str) -> R:
        if len(found) > 1:
            raise errors.Ambiguous(self.kind, name, [row.id for row in found])
        if not found:
            raise errors.NotFound(f"{self.kind.replace('_', ' ')} {name!r} not found", metadata={"kind": self.kind})
        return found[0]

    def _name(self, row: R) -> str:
        return str(getattr(row, "name", ""))

    async def _call(self, method: str, request: Message, response: type[M], retry: Retry = Retry.SAFE) -> M:
        return await self._connection.call(f"{self.service}/{method}", request, response, retry=retry)

    async def _one(self, method: str, request: Message, response: type[Message], retry: Retry = Retry.SAFE) -> R:
        return to_record(self.record, await self._call(method, request, response, retry))

    async def _pages(self, method: str, request: Any, response: type[Message], rows: str) -> AsyncIterator[R]:
        """Each row of each page; `rows` is the repeated field of `response`."""
        while True:
            page: Any = await self._call(method, request, response)
            for row in getattr(page, rows):
                yield to_record(self.record, row)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def _delete(self, method: str, request: Message, response: type[M]) -> M | None:
        """None when a try that broke had deleted it already. Errors: NotFound when there was nothing to delete."""
        try:
            return await self._call(method, request, response)
        except errors.NotFound as error:
            if error.resent:
                return None
            raise

    async def _toward(
        self, method: str, request: Message, response: type[Message], ref: Ref, arrived: Callable[[R], bool]
    ) -> R:
        """A change to a state: when a try that broke has made it already, the resource as it is. Errors: Conflict."""
        try:
            return await self._one(method, request, response)
        except errors.Conflict as error:
            row = await self.get(ref) if error.resent else None
            if row is not None and arrived(row):
                return row
            raise

    async def wait(self, ref: Ref, state: str, *, deadline_s: float = 300.0, progress: Progress | None = None) -> R:
        """Until it is in `state`. `progress(record)` is called at first and whenever it has changed.

        Errors: ResourceFailed at once when it goes to ERROR, WaitTimeout after `deadline_s` seconds, NotFound when it vanishes.
        """
        async for row in self._watch(ref, deadline_s, f"become {state}", progress):
            now: str = getattr(row, "state", "")
            if now == state:
                return row
            if now == "ERROR":
                raise self._failed(row)
        raise AssertionError("the watch ends only by raising")

    async def wait_gone(self, ref: Ref, *, deadline_s: float = 300.0, progress: Progress | None = None) -> None:
        """Until a deleted resource is gone. Errors: WaitTimeout, ResourceFailed."""
        try:
            async for row in self._watch(ref, deadline_s, "be gone", progress):
                if getattr(row, "state", "") == "ERROR" and not getattr(row, "task_id", ""):
                    raise self._failed(row)
        except errors.NotFound:
            return

    async def _watch(self, ref: Ref, deadline_s: float, goal: str, progress: Progress | None) -> AsyncIterator[R]:
        """Looks again and again, at growing distances. Errors: WaitTimeout."""
        ends_s = time.monotonic() + deadline_s
        pause_s, seen = _POLL_MIN_S, None
        while True:
            row = await self.get(ref)
            if row != seen:
                pause_s, seen = _POLL_MIN_S, row
                if progress is not None:
                    progress(row)
            yield row
            left_s = ends_s - time.monotonic()
            if left_s <= 0:
                raise errors.WaitTimeout(self._late(row, goal, deadline_s), kind=self.kind, record=row)
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, _POLL_MAX_S)

    def _late(self, row: R, goal: str, deadline_s: float) -> str:
        state = getattr(row, "state", "there")
        return f"{self.kind} {self._name(row) or row.id} did not {goal} within {deadline_s:g} s; it is {state}"

    def _failed(self, row: R) -> errors.ResourceFailed:
        fault: Any = getattr(row, "fault", None)
        reason, text, details = (fault, fault, ()) if isinstance(fault, str) else _parts(fault)
        message = f"{self.kind} {self._name(row) or row.id} went to ERROR: {text or 'no reason given'}"
        if more := [line for line in details if line not in text]:
            message += f" ({'; '.join(more)})"
        return errors.ResourceFailed(message, kind=self.kind, record=row, fault_reason=reason, details=details)


def _parts(fault: Any) -> tuple[str, str, tuple[str, ...]]:
    if fault is None:
        return "", "", ()
    text = fault.message if not fault.reason else f"{fault.reason}: {fault.message}"
    return fault.reason, text, fault.details
