"""A watch through the API ends with the right to watch."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from controllerd.store import event
from skyrack.v1 import event_pb2, event_pb2_grpc
from tests.controllerd.identity.conftest import Api, bearer, caller_of

LIMIT_S = 60
ADMIN = caller_of("operators", "admin")


async def test_a_watch_ends_with_the_token(api: Api) -> None:
    async def happen(what: str) -> None:
        await api.controller.database.write(lambda tx: event.record(tx, "thing.done", "id-alpha", what))

    await happen("before")
    stub = event_pb2_grpc.EventServiceStub(api.channel)
    request = event_pb2.WatchEventsRequest(after_seq=await api.controller.database.read(event.last_seq))
    watches = [stub.WatchEvents(request, metadata=bearer(api.tokens[who])) for who in ("alpha/member", "alpha/reader")]
    await happen("one")
    async with asyncio.timeout(LIMIT_S):
        assert [(await watch.read()).resource_id for watch in watches] == ["one", "one"]
        await api.controller.login.revoke(api.tokens["alpha/member"])
        await api.controller.identity.grant(ADMIN, "id-alpha-reader", "id-alpha", "member")
        await happen("two")
        for watch in watches:
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                while True:
                    assert (await watch.read()).resource_id != "two"
            assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
