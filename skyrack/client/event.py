"""Events: the history, who did what and what became of it."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from skyrack.client.collection import Ref, id_of
from skyrack.client.connection import Connection
from skyrack.client.wire import to_record
from skyrack.v1 import event_pb2 as pb


@dataclass(frozen=True)
class Event:
    seq: int
    time: datetime.datetime | None
    kind: str
    """ "server.create", "server.running", "node.lost", ..."""
    project_id: str
    resource_kind: str
    resource_id: str
    message: str
    request_id: str
    user_id: str
    data: Mapping[str, str]


class Events:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def list(
        self, *, resource: Ref | None = None, kind: str = "", request_id: str = "", all_projects: bool = False
    ) -> AsyncIterator[Event]:
        """Newest first, page after page."""
        request = pb.ListEventsRequest(resource_id=id_of(resource), kind=kind, request_id=request_id, all_projects=all_projects)
        while True:
            page = await self._connection.call("EventService/ListEvents", request, pb.ListEventsResponse)
            for row in page.events:
                yield to_record(Event, row)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def watch(
        self, *, resource: Ref | None = None, after_seq: int = 0, all_projects: bool = False
    ) -> AsyncIterator[Event]:
        """Events from now on (or after `after_seq`), as they happen, none left out when a connection breaks. Never ends."""
        last = after_seq or await self._newest(all_projects)

        def request() -> pb.WatchEventsRequest:
            return pb.WatchEventsRequest(after_seq=last, resource_id=id_of(resource), all_projects=all_projects)

        async for message in self._connection.stream("EventService/WatchEvents", request, pb.Event):
            last = max(last, message.seq)
            yield to_record(Event, message)

    async def _newest(self, all_projects: bool) -> int:
        request = pb.ListEventsRequest(page_size=1, all_projects=all_projects)
        page = await self._connection.call("EventService/ListEvents", request, pb.ListEventsResponse)
        return max((row.seq for row in page.events), default=0)
