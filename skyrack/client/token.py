"""Tokens: what a login gives; scoped to one project, ending by themselves."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

from google.protobuf.empty_pb2 import Empty

from skyrack.client.connection import Connection, Retry
from skyrack.client.wire import to_record
from skyrack.v1 import identity_pb2 as pb


@dataclass(frozen=True)
class Token:
    token: str = field(repr=False)
    """The secret itself; "" except from `create`."""
    expires_at: datetime.datetime | None
    user_id: str
    user_name: str
    project_id: str
    project_name: str
    roles: tuple[str, ...]


class Tokens:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(self, *, user: str, password: str, project: str = "", lifetime_s: int = 0) -> Token:
        """A new token. `lifetime_s` 0 = the cloud's default, at most 7 days. Errors: Unauthenticated."""
        request = pb.CreateTokenRequest(user=user, password=password, project=project, lifetime_s=lifetime_s)
        answer = await self._connection.call("IdentityService/CreateToken", request, pb.Token, with_token=False)
        return to_record(Token, answer)

    async def current(self) -> Token:
        """Whose this connection's token is, and until when."""
        return to_record(Token, await self._connection.call("IdentityService/GetToken", Empty(), pb.Token))

    async def revoke(self) -> None:
        """Ends this connection's token at once."""
        await self._connection.call("IdentityService/RevokeToken", Empty(), Empty, retry=Retry.ONCE)
