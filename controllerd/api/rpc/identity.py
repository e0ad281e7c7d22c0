"""IdentityService."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from controllerd.api.rpc.gate import Context, Gate, given, once, origin, page, timestamp, token_of
from controllerd.app.identity import Identity
from controllerd.app.login import Login
from controllerd.domain.policy import Caller
from controllerd.domain.project import Project
from controllerd.domain.user import Token, User
from skyrack.v1 import identity_pb2 as pb
from skyrack.v1 import identity_pb2_grpc


class IdentityService(identity_pb2_grpc.IdentityServiceServicer):
    def __init__(self, gate: Gate, identity: Identity, login: Login) -> None:
        self._gate, self._identity, self._login = gate, identity, login

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Context) -> pb.Token:
        issued = await self._login.issue(request.user, request.password, request.project, request.lifetime_s, origin(context))
        message = render_token(issued.token, issued.caller)
        message.token = issued.secret
        return message

    async def GetToken(self, request: Empty, context: Context) -> pb.Token:
        caller = await self._gate.caller(context)
        return render_token(await self._login.lookup(token_of(context)), caller)

    async def RevokeToken(self, request: Empty, context: Context) -> Empty:
        await self._gate.caller(context)
        await self._login.revoke(token_of(context))
        return Empty()

    async def CreateProject(self, request: pb.CreateProjectRequest, context: Context) -> pb.Project:
        caller = await self._gate.caller(context)
        return render_project(await self._identity.create_project(caller, request.name, request.description, once(request)))

    async def GetProject(self, request: pb.GetProjectRequest, context: Context) -> pb.Project:
        caller = await self._gate.caller(context)
        return render_project(await self._identity.get_project(caller, request.project_id))

    async def ListProjects(self, request: pb.ListProjectsRequest, context: Context) -> pb.ListProjectsResponse:
        caller = await self._gate.caller(context)
        found = await self._identity.list_projects(caller, request.name, page(request))
        return pb.ListProjectsResponse(projects=[render_project(p) for p in found.items], next_page_token=found.next_token)

    async def UpdateProject(self, request: pb.UpdateProjectRequest, context: Context) -> pb.Project:
        caller = await self._gate.caller(context)
        changes = given(request, "name", "description", "enabled")
        return render_project(await self._identity.update_project(caller, request.project_id, **changes))

    async def DeleteProject(self, request: pb.DeleteProjectRequest, context: Context) -> Empty:
        caller = await self._gate.caller(context)
        await self._identity.delete_project(caller, request.project_id)
        return Empty()

    async def CreateUser(self, request: pb.CreateUserRequest, context: Context) -> pb.User:
        caller = await self._gate.caller(context)
        return render_user(
            await self._identity.create_user(caller, request.name, request.password, request.email, once(request, "password"))
        )

    async def GetUser(self, request: pb.GetUserRequest, context: Context) -> pb.User:
        caller = await self._gate.caller(context)
        return render_user(await self._identity.get_user(caller, request.user_id))

    async def ListUsers(self, request: pb.ListUsersRequest, context: Context) -> pb.ListUsersResponse:
        caller = await self._gate.caller(context)
        found = await self._identity.list_users(caller, request.name, page(request))
        return pb.ListUsersResponse(users=[render_user(u) for u in found.items], next_page_token=found.next_token)

    async def UpdateUser(self, request: pb.UpdateUserRequest, context: Context) -> pb.User:
        caller = await self._gate.caller(context)
        changes = given(request, "name", "password", "enabled", "email")
        return render_user(await self._identity.update_user(caller, request.user_id, **changes))

    async def DeleteUser(self, request: pb.DeleteUserRequest, context: Context) -> Empty:
        caller = await self._gate.caller(context)
        await self._identity.delete_user(caller, request.user_id)
        return Empty()

    async def GrantRole(self, request: pb.GrantRoleRequest, context: Context) -> Empty:
        caller = await self._gate.caller(context)
        await self._identity.grant(caller, request.user_id, request.project_id, request.role)
        return Empty()

    async def RevokeRole(self, request: pb.RevokeRoleRequest, context: Context) -> Empty:
        caller = await self._gate.caller(context)
        await self._identity.revoke(caller, request.user_id, request.project_id, request.role)
        return Empty()

    async def ListRoles(self, request: pb.ListRolesRequest, context: Context) -> pb.ListRolesResponse:
        caller = await self._gate.caller(context)
        found = await self._identity.list_roles(caller, request.user_id, request.project_id)
        return pb.ListRolesResponse(assignments=[pb.RoleAssignment(user_id=u, project_id=p, role=r) for u, p, r in found])


def render_token(token: Token, caller: Caller) -> pb.Token:
    return pb.Token(
        expires_at=timestamp(token.expires_at), user_id=caller.user_id, user_name=caller.user_name,
        project_id=caller.project_id, project_name=caller.project_name, roles=sorted(caller.roles),
    )  # fmt: skip


def render_project(project: Project) -> pb.Project:
    return pb.Project(
        id=project.id, name=project.name, description=project.description, enabled=project.enabled,
        created_at=timestamp(project.created_at),
    )  # fmt: skip


def render_user(user: User) -> pb.User:
    return pb.User(id=user.id, name=user.name, enabled=user.enabled, email=user.email, created_at=timestamp(user.created_at))
