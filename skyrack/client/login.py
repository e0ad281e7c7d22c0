"""Where a token comes from: given, or fetched by password when first needed and again when it has expired."""

from __future__ import annotations

import asyncio

from skyrack.client import errors
from skyrack.client.connection import Connection


class GivenToken:
    """A token from outside; "" means none was given, which only calls without login survive."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self, connection: Connection) -> str:
        if not self._token:
            raise errors.Misconfigured("no user and no token given")
        return self._token

    def forget(self, token: str) -> bool:
        return False


class Password:
    """Logs in with a name and a password, into one project ("" = the user's only one)."""

    def __init__(self, user: str, password: str, project: str) -> None:
        self._user, self._password, self._project = user, password, project
        self._token = ""
        self._lock = asyncio.Lock()

    async def token(self, connection: Connection) -> str:
        async with self._lock:
            if not self._token:
                self._token = await self._fetch(connection)
            return self._token

    async def _fetch(self, connection: Connection) -> str:
        from skyrack.v1 import identity_pb2 as pb

        request = pb.CreateTokenRequest(user=self._user, password=self._password, project=self._project)
        answer = await connection.call("IdentityService/CreateToken", request, pb.Token, with_token=False)
        return answer.token

    def forget(self, token: str) -> bool:
        if self._token == token:
            self._token = ""
        return True
