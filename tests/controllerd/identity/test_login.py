"""Logins and tokens through the API."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from argon2 import extract_parameters
from google.protobuf.empty_pb2 import Empty

from controllerd.app.cloud import Once
from controllerd.app.login import DELAY_MAX_S, FORGOTTEN_AFTER_S, FREE_FAILURES, Login
from controllerd.store.database import Tx
from daemonkit.errors import Conflict, Unauthenticated, Unavailable
from skyrack.v1 import identity_pb2 as pb
from tests.controllerd.conftest import ManualClock
from tests.controllerd.identity.conftest import PASSWORD, Api, bearer, caller_of, token_of

ADMIN = caller_of("operators", "admin")


async def refusal(work: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await work  # type: ignore[misc]
    return refused.value


async def test_a_token_from_login_to_revocation(api: Api) -> None:
    token = await api.login("alpha-member", lifetime_s=600)
    assert token.project_name == "alpha" and list(token.roles) == ["member"] and token.token
    shown = await api.stub.GetToken(Empty(), metadata=bearer(token.token))
    assert shown.user_name == "alpha-member" and not shown.token and shown.expires_at == token.expires_at
    await api.stub.RevokeToken(Empty(), metadata=bearer(token.token))
    assert (await refusal(api.stub.GetToken(Empty(), metadata=bearer(token.token)))).code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_wrong_name_costs_as_much_as_a_wrong_password(api: Api) -> None:
    passwords = api.controller.passwords
    real, nobodys = (extract_parameters(stored) for stored in (await passwords.hash("x" * 12), passwords._nobody))
    assert nobodys == real
    assert not await passwords.right("", "x" * 12)


async def test_every_wrong_login_looks_the_same(api: Api) -> None:
    await api.controller.identity.update_user(ADMIN, "id-beta-reader", enabled=False)
    seen = set()
    for user, password, project in (
        ("alpha-member", "wrong password", ""), ("nobody", PASSWORD, ""), ("beta-reader", PASSWORD, ""),
        ("alpha-member", PASSWORD, "beta"), ("alpha-member", PASSWORD, "no such"), ("alpha-member", "x" * 100_000, ""),
    ):  # fmt: skip
        error = await refusal(api.login(user, password, project=project))
        seen.add((error.code(), error.details()))
    assert len(seen) == 1
    long = await refusal(api.login("n" * 300, PASSWORD))
    assert long.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_secrets_are_nowhere_in_the_files(api: Api) -> None:
    token = await api.login("alpha-member")
    request = pb.CreateUserRequest(name="new", password="a very secret word", idempotency_key="k")
    first = await api.stub.CreateUser(request, metadata=bearer(api.tokens["admin"]))
    assert (await api.stub.CreateUser(request, metadata=bearer(api.tokens["admin"]))).id == first.id
    join, _expiry = await api.controller.nodes.create_join_token(ADMIN, "n1", ["compute"], 0)
    content = b"".join(f.read_bytes() for f in api.path.iterdir() if f.is_file())
    for secret in (token.token, PASSWORD, "a very secret word", join, api.tokens["admin"]):
        assert secret.encode() not in content
    fingerprints = await api.controller.database.read(
        lambda tx: [r["fingerprint"] for r in tx.all("SELECT * FROM idempotency")]
    )
    other = pb.CreateUserRequest(name="new", password="a wrong guess", idempotency_key="k")
    assert len(fingerprints) == 1 and (await api.stub.CreateUser(other, metadata=bearer(api.tokens["admin"]))).id == first.id


async def test_failures_are_slowed_by_name_and_forgotten(api: Api, clock: ManualClock) -> None:
    login = api.controller.login
    for _ in range(FREE_FAILURES["user"]):
        with pytest.raises(Unauthenticated, match="wrong"):
            await login.issue("alpha-member", "wrong", "", 0)
    assert await login.issue("alpha-reader", PASSWORD, "", 0)
    with pytest.raises(Unauthenticated, match="wrong"):
        await login.issue("alpha-member", "wrong", "", 0)
    with pytest.raises(Unauthenticated, match="try again in 1 s"):
        await login.issue("alpha-member", PASSWORD, "", 0)
    clock.forward(1.5)
    assert await login.issue("alpha-member", PASSWORD, "", 0)
    for _ in range(FREE_FAILURES["user"] + 12):
        clock.forward(DELAY_MAX_S)
        with pytest.raises(Unauthenticated, match="wrong"):
            await login.issue("alpha-member", "wrong", "", 0)
    with pytest.raises(Unauthenticated, match="30 s"):
        await login.issue("alpha-member", PASSWORD, "", 0)
    clock.forward(FORGOTTEN_AFTER_S + 1)
    for _ in range(FREE_FAILURES["user"]):
        with pytest.raises(Unauthenticated, match="wrong"):
            await login.issue("alpha-member", "wrong", "", 0)


async def test_an_address_that_tries_many_names_is_slowed(api: Api, clock: ManualClock) -> None:
    login = api.controller.login
    for n in range(FREE_FAILURES["from"] + 1):
        with pytest.raises(Unauthenticated, match="wrong"):
            await login.issue(f"name-{n}", "wrong", "", 0, "ipv4:192.0.2.1")
    with pytest.raises(Unauthenticated, match="try again"):
        await login.issue("alpha-member", PASSWORD, "", 0, "ipv4:192.0.2.1")
    assert await login.issue("alpha-member", PASSWORD, "", 0, "ipv4:192.0.2.2")


async def test_a_token_ends_with_time_user_project_and_role(api: Api, clock: ManualClock) -> None:
    login, identity = api.controller.login, api.controller.identity
    short = (await login.issue("alpha-member", PASSWORD, "", 60)).secret
    assert (await login.caller_of(short)).roles == {"member"}
    clock.forward(61)
    with pytest.raises(Unauthenticated):
        await login.caller_of(short)
    secret = api.tokens["alpha/member"]
    await identity.grant(ADMIN, "id-alpha-member", "id-alpha", "reader")
    assert (await login.caller_of(secret)).roles == {"member", "reader"}
    await identity.revoke(ADMIN, "id-alpha-member", "id-alpha", "member")
    assert (await login.caller_of(secret)).roles == {"reader"}
    await identity.update_project(ADMIN, "id-alpha", enabled=False)
    with pytest.raises(Unauthenticated):
        await login.caller_of(secret)
    await identity.update_project(ADMIN, "id-alpha", enabled=True)
    assert await login.caller_of(secret)
    await identity.update_user(ADMIN, "id-alpha-member", password="another secret")
    with pytest.raises(Unauthenticated):
        await login.caller_of(secret)


async def test_a_revocation_during_a_look_up_is_not_forgotten(api: Api) -> None:
    """The look-up read before the commit; what it read must not stay in the cache."""
    login, database = api.controller.login, api.controller.database

    class Late(Login):
        pass

    read = database.read

    async def slow(fn: object) -> object:
        found = await read(fn)  # type: ignore[arg-type]
        await login.revoke(api.tokens["alpha/member"])
        return found

    database.read = slow  # type: ignore[method-assign, assignment]
    assert await login.caller_of(api.tokens["alpha/member"])
    database.read = read  # type: ignore[method-assign]
    with pytest.raises(Unauthenticated):
        await login.caller_of(api.tokens["alpha/member"])


async def test_a_password_changed_during_a_login_wins(api: Api) -> None:
    login, passwords = api.controller.login, api.controller.passwords
    right = passwords.right

    async def slow(stored: str, password: str) -> bool:
        verdict = await right(stored, password)
        await api.controller.identity.update_user(ADMIN, "id-alpha-member", password="another secret")
        return verdict

    passwords.right = slow  # type: ignore[method-assign]
    with pytest.raises(Unauthenticated):
        await login.issue("alpha-member", PASSWORD, "", 0)


async def test_several_projects_must_be_chosen_from(api: Api) -> None:
    await api.controller.identity.grant(ADMIN, "id-alpha-member", "id-beta", "reader")
    error = await refusal(api.login("alpha-member"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and "alpha, beta" in str(error.details())
    assert list((await api.login("alpha-member", project="beta")).roles) == ["reader"]
    assert list((await api.login("alpha-member", project="id-alpha")).roles) == ["member"]


async def test_the_last_admin_stays(api: Api) -> None:
    identity = api.controller.identity
    for change in (
        identity.delete_user(ADMIN, ADMIN.user_id), identity.update_user(ADMIN, ADMIN.user_id, enabled=False),
        identity.revoke(ADMIN, ADMIN.user_id, "id-operators", "admin"), identity.delete_project(ADMIN, "id-operators"),
    ):  # fmt: skip
        with pytest.raises(Conflict):
            await change
    await identity.grant(ADMIN, ADMIN.user_id, "id-alpha", "admin")
    await identity.revoke(ADMIN, ADMIN.user_id, "id-alpha", "admin")  # the same person is admin elsewhere
    await identity.update_user(ADMIN, "id-alpha-member", enabled=False)
    await identity.grant(ADMIN, "id-beta-member", "id-beta", "admin")
    await identity.delete_user(ADMIN, ADMIN.user_id)


async def test_a_project_goes_with_what_belongs_to_it_only(api: Api) -> None:
    controller = api.controller
    anew = Once("", "", "")
    project = await controller.identity.create_project(ADMIN, "gone", "", anew)
    member = caller_of("alpha", "member")
    member = type(member)(member.user_id, member.user_name, project.id, "gone", member.roles)
    flavor = await controller.flavors.create(member, "mine", 1, 512, 1, "", False, anew)
    image = await controller.images.create(member, "i", "raw", False, 0, 0, {}, anew)
    with pytest.raises(Conflict, match="image"):
        await controller.identity.delete_project(ADMIN, project.id)
    await controller.images.delete(member, image.id)
    await controller.identity.delete_project(ADMIN, project.id)

    def left(tx: Tx) -> int:
        tables = ("flavor", "security_group", "security_group_rule", "quota_limit", "role_assignment", "token")
        return sum(tx.value(f"SELECT count(*) FROM {t} WHERE project_id = ?", project.id) for t in tables)

    assert await controller.database.read(left) == 0 and flavor.id


async def test_too_many_logins_at_once_are_turned_away(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = api.controller.passwords
    gate = asyncio.Event()

    class Slow:
        async def run(self, fn: object, *args: object) -> bool:
            await gate.wait()
            return True

        def close(self) -> None: ...

    monkeypatch.setattr(passwords, "_threads", Slow())
    monkeypatch.setattr("controllerd.app.login.LOGINS_WAITING_MAX", 3)
    waiting = [asyncio.create_task(passwords.right("x", "y")) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await passwords.right("x", "y")
    gate.set()
    assert await asyncio.gather(*waiting) == [True] * 3


async def test_a_retried_create_in_parallel_makes_one(api: Api) -> None:
    request = pb.CreateProjectRequest(name="once", idempotency_key="key")
    made = await asyncio.gather(*(api.stub.CreateProject(request, metadata=bearer(api.tokens["admin"])) for _ in range(20)))
    assert len({p.id for p in made}) == 1
    different = pb.CreateProjectRequest(name="twice", idempotency_key="key")
    error = await refusal(api.stub.CreateProject(different, metadata=bearer(api.tokens["admin"])))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_old_token_row_is_no_right(api: Api, tmp_path: Path) -> None:
    """A token of a user who lost every role in the project still logs out, and nothing else."""
    secret = await api.controller.database.write(lambda tx: token_of(tx, "id-alpha-member", "id-beta", tx.now + 60))
    error = await refusal(api.stub.ListProjects(pb.ListProjectsRequest(), metadata=bearer(secret)))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    await api.stub.RevokeToken(Empty(), metadata=bearer(secret))
