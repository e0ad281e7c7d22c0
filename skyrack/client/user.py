"""Users: persons or programs that log in."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty

from skyrack.client.collection import Collection, Ref, id_of, new_key
from skyrack.v1 import identity_pb2 as pb


@dataclass(frozen=True)
class User:
    id: str
    name: str
    enabled: bool
    created_at: datetime.datetime | None
    email: str


class Users(Collection[User]):
    kind, service, record = "user", "IdentityService", User

    async def create(self, name: str, *, password: str, email: str = "") -> User:
        """Admins only. Errors: AlreadyExists, Forbidden, InvalidArgument (password too weak)."""
        request = pb.CreateUserRequest(name=name, password=password, email=email, idempotency_key=new_key())
        return await self._one("CreateUser", request, pb.User)

    async def get(self, ref: Ref) -> User:
        return await self._one("GetUser", pb.GetUserRequest(user_id=id_of(ref)), pb.User)

    def list(self, *, name: str = "") -> AsyncIterator[User]:
        return self._pages("ListUsers", pb.ListUsersRequest(name=name), pb.ListUsersResponse, "users")

    async def update(
        self,
        ref: Ref,
        *,
        name: str | None = None,
        password: str | None = None,
        enabled: bool | None = None,
        email: str | None = None,
    ) -> User:
        """Admins; oneself: the password only."""
        request = pb.UpdateUserRequest(user_id=id_of(ref), name=name, password=password, enabled=enabled, email=email)
        return await self._one("UpdateUser", request, pb.User)

    async def delete(self, ref: Ref) -> None:
        await self._delete("DeleteUser", pb.DeleteUserRequest(user_id=id_of(ref)), Empty)
