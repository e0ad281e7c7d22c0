"""Every public method against every kind of caller. Methods are found by descriptor: a new one is tested from its birth."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor

from controllerd.domain.policy import ROLES, RULES, Caller, authorise
from daemonkit.errors import Forbidden
from tests.controllerd.identity.conftest import Api, bearer

OPEN = {"CreateToken", "JoinNode"}  # need no token
READS = ("Get", "List", "Watch", "Download")
ADMINS_ONLY = {
    "CreateProject", "UpdateProject", "DeleteProject", "CreateUser", "ListUsers", "DeleteUser", "GrantRole", "RevokeRole",
    "GetNode", "ListNodes", "UpdateNode", "DeleteNode", "CreateJoinToken", "UpdateQuota",
    "GetCluster", "TransferLeadership", "Backup", "ReleaseNodes", "ListDifferences",
}  # fmt: skip
READERS_MAY = {"RevokeToken", "UpdateUser"}  # one's own token, one's own password
UNKNOWN = "00000000-0000-4000-8000-000000000000"


def methods(api: Api) -> list[MethodDescriptor]:
    pool = descriptor_pool.Default()
    return [method for service in api.services for method in pool.FindServiceByName(service).methods]


async def call(api: Api, method: MethodDescriptor, token: str | None, **fields: Any) -> grpc.StatusCode:
    """The status of one call. Ids in the request are those of nobody's resource, unless given."""
    kind = message_factory.GetMessageClass(method.input_type)
    request = kind()
    for field in method.input_type.fields:
        if field.name.endswith("_id") and field.type == field.TYPE_STRING and not field.is_repeated:
            setattr(request, field.name, fields.get(field.name, UNKNOWN))
        elif field.name == "name":
            request.name = "x"
        elif field.name == "all_projects":
            request.all_projects = fields.get(field.name, False)
        elif field.enum_type is not None and not field.is_repeated:
            setattr(request, field.name, 1)
    first = getattr(request, "begin", None)
    if first is not None:
        first.image_id = UNKNOWN
    path = f"/{method.containing_service.full_name}/{method.name}"
    serialize, parse = kind.SerializeToString, message_factory.GetMessageClass(method.output_type).FromString
    options: dict[str, Any] = {"metadata": bearer(token), "timeout": 30}
    try:
        if method.client_streaming:
            await api.channel.stream_unary(path, serialize, parse)(iter([request]), **options)
        elif method.server_streaming:
            stream = api.channel.unary_stream(path, serialize, parse)(request, **{**options, "timeout": 0.3})
            async for _message in stream:
                break
        else:
            await api.channel.unary_unary(path, serialize, parse)(request, **options)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_no_method_without_a_good_token(api: Api) -> None:
    found = methods(api)
    assert len(found) > 60
    for method in found:
        if method.name in OPEN:
            continue
        for token in (None, "", "garbage", "x" * 5000, api.tokens["expired"], api.tokens["revoked"]):
            assert await call(api, method, token) is grpc.StatusCode.UNAUTHENTICATED, (method.full_name, token)


async def test_readers_change_nothing(api: Api) -> None:
    for method in methods(api):
        if method.name.startswith(READS) or method.name in OPEN | READERS_MAY:
            continue
        assert await call(api, method, api.tokens["alpha/reader"]) is grpc.StatusCode.PERMISSION_DENIED, method.full_name


async def test_what_is_the_admins_is_nobody_elses(api: Api) -> None:
    for method in methods(api):
        if method.name == "RevokeToken":  # would end what the others need
            continue
        for who in ("alpha/reader", "alpha/member"):
            code = await call(api, method, api.tokens[who])
            if method.name in ADMINS_ONLY:
                assert code is grpc.StatusCode.PERMISSION_DENIED, (method.full_name, who)
            assert code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), (method.full_name, code)
        assert await call(api, method, api.tokens["admin"]) is not grpc.StatusCode.PERMISSION_DENIED, method.full_name


async def test_all_projects_are_the_admins(api: Api) -> None:
    found = [method for method in methods(api) if "all_projects" in method.input_type.fields_by_name]
    assert len(found) >= 12
    for method in found:
        for who in ("alpha/reader", "alpha/member"):
            code = await call(api, method, api.tokens[who], all_projects=True)
            assert code is grpc.StatusCode.PERMISSION_DENIED, (method.full_name, who)
        if not method.server_streaming:
            assert await call(api, method, api.tokens["admin"], all_projects=True) is grpc.StatusCode.OK, method.full_name


async def test_nobodys_ids_are_not_found(api: Api) -> None:
    for method in methods(api):
        names = {f.name for f in method.input_type.fields}
        acts_on_one = method.name.startswith(("Get", "Delete", "Download")) and any(n.endswith("_id") for n in names)
        if acts_on_one and method.name not in ADMINS_ONLY:
            assert await call(api, method, api.tokens["alpha/member"]) is grpc.StatusCode.NOT_FOUND, method.full_name


@pytest.mark.parametrize("role", [*ROLES, "stranger"])
def test_the_table(role: str) -> None:
    caller = Caller("u", "u", "p", "p", frozenset({role}))
    for action, roles in RULES.items():
        assert caller.may(action) == (role in roles)
        if role not in roles:
            with pytest.raises(Forbidden):
                authorise(caller, action)
    assert not caller.may("not.in.the.table")
    with pytest.raises(Forbidden):
        authorise(caller, "not.in.the.table")
