"""Roles: a user's right in a project: "admin", "member" or "reader"."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty

from skyrack.client import errors
from skyrack.client.collection import Ref, id_of
from skyrack.client.connection import Connection
from skyrack.client.wire import to_record
from skyrack.v1 import identity_pb2 as pb


@dataclass(frozen=True)
class RoleAssignment:
    user_id: str
    project_id: str
    role: str


class Roles:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def grant(self, *, user: Ref, project: Ref, role: str) -> None:
        """Admins only. Errors: NotFound, InvalidArgument."""
        request = pb.GrantRoleRequest(user_id=id_of(user), project_id=id_of(project), role=role)
        await self._connection.call("IdentityService/GrantRole", request, Empty)

    async def revoke(self, *, user: Ref, project: Ref, role: str) -> None:
        """Admins only. Errors: NotFound."""
        request = pb.RevokeRoleRequest(user_id=id_of(user), project_id=id_of(project), role=role)
        try:
            await self._connection.call("IdentityService/RevokeRole", request, Empty)
        except errors.NotFound as error:
            if not error.resent:  # else a try that broke has done it
                raise

    async def list(self, *, user: Ref | None = None, project: Ref | None = None) -> tuple[RoleAssignment, ...]:
        """Assignments of a user, of a project, or all that the caller may see. Not paged."""
        request = pb.ListRolesRequest(user_id=id_of(user), project_id=id_of(project))
        answer = await self._connection.call("IdentityService/ListRoles", request, pb.ListRolesResponse)
        return tuple(to_record(RoleAssignment, row) for row in answer.assignments)
