"""Whatever is sent to the public API, nothing of it is an internal error, changes a row when it is refused, or tells of our
insides. Requests are made from the descriptors: see `nasty`."""

from __future__ import annotations

import asyncio
import itertools
import re

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor

from tests.controllerd.api.nasty import EVIL_TEXT, Attack, attacks, good
from tests.controllerd.api.rig import TIMEOUT_S, Answer, Api
from tests.controllerd.identity.conftest import PASSWORD
from tests.controllerd.identity.test_rights import ADMINS_ONLY, OPEN, READERS_MAY, READS

BROKEN = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
INSIDES = re.compile(
    r"Traceback|File \"|\.py\b|/tmp/|/var/|site-packages|\bSELECT\b|INSERT INTO|sqlite|apsw|constraint|no such (table|column)|"
    r"<class|object at 0x|Error\(|Exception"
)
LISTS = ("List", "Watch")


def faults(attack: Attack, answer: Answer) -> list[str]:
    """What is wrong with the answer."""
    found = []
    if answer.code in BROKEN:
        found.append("broken")
    if INSIDES.search(answer.message) or not answer.message.isprintable() or len(answer.message.encode()) > 1000:
        found.append("tells what it should not, or in a form that it should not")
    if answer.ok and attack.kind != "odd" and not _harmless(attack):
        found.append("accepted")
    if answer.code is grpc.StatusCode.INVALID_ARGUMENT and not _named(attack, answer):
        found.append("the field is not named")
    return found


def _harmless(attack: Attack) -> bool:
    """A filter that nothing fits; an event number to come; a password, which may hold anything, if it is not too long."""
    lists = type(attack.request).__name__.startswith(LISTS)
    is_filter = lists and attack.field not in ("page_token", "page_size", "state", "after_seq")
    if attack.field == "after_seq":
        return bool(attack.request.after_seq < 1 << 63)
    return is_filter or (attack.field == "password" and attack.request.password != EVIL_TEXT[0])


def _named(attack: Attack, answer: Answer) -> bool:
    roots = {field.split(".")[0] for field in answer.fields}
    field = attack.request.DESCRIPTOR.fields_by_name[attack.field]
    right = {attack.field, field.containing_oneof.name if field.containing_oneof else attack.field}
    others = set(attack.request.DESCRIPTOR.fields_by_name) if attack.kind == "odd" else set()
    return bool(roots) and roots <= right | others


async def attack_all(api: Api, who: str, kinds: tuple[str, ...], without: tuple[str, ...] = ()) -> int:
    failed: list[str] = []
    count, rows = 0, await api.rows()
    for method in api.methods():
        if method.name.startswith((*without, "Watch")):
            continue
        for attack in attacks(method, api.ids):
            if attack.kind not in kinds or (attack.kind == "odd" and method.name.startswith(LISTS)):
                continue
            count += 1
            answer = await api.send(method, attack.request, who)
            before, rows = rows, await api.rows()
            wrong = faults(attack, answer) + (["changed rows"] if not answer.ok and rows != before else [])
            failed += (
                [f"{method.name} {attack}: {answer.code.name} {answer.message[:200]}: {', '.join(wrong)}"] if wrong else []
            )
    assert not failed, "\n".join(failed)
    return count


async def test_as_admin(api: Api) -> None:
    assert await attack_all(api, "admin", ("evil", "odd")) > 3000


async def test_as_member(api: Api) -> None:
    """Lists are as for the admin, and the odd is taken from a member as from an admin."""
    assert await attack_all(api, "alpha/member", ("evil", "foreign"), without=(*LISTS, *ADMINS_ONLY)) > 1000


async def test_watches(api: Api) -> None:
    """All at once: one that is let in is silent, which takes its time to be sure of."""
    method, before = api.method("WatchEvents"), await api.rows()
    tried = [attack for attack in attacks(method, api.ids) if attack.kind != "foreign"]
    answers = await asyncio.gather(*(api.send(method, attack.request, "admin") for attack in tried))
    assert not [(str(attack), answer) for attack, answer in zip(tried, answers, strict=True) if faults(attack, answer)]
    assert await api.rows() == before


async def test_as_reader_and_as_nobody(api: Api) -> None:
    """One attack a field: they are turned away before anybody looks at it."""
    before = await api.rows()
    for method in api.methods():
        tried = {attack.field: attack.request for attack in attacks(method, api.ids)}
        for request in (good(method, api.ids), *tried.values()):
            if method.name not in OPEN:
                assert (await api.send(method, request, None)).code is grpc.StatusCode.UNAUTHENTICATED, method.name
            if not method.name.startswith(READS) and method.name not in OPEN | READERS_MAY:
                code = (await api.send(method, request, "alpha/reader")).code
                asks = any(f.has_presence and request.HasField(f.name) for f in method.input_type.fields)
                if asks or not method.name.startswith("Update"):  # an update of nothing is a look
                    assert code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT), (method.name, code)
    assert await api.rows() == before


async def test_good_requests_are_good(api: Api) -> None:
    """Else the attacks would only show that everything is refused."""
    creates = [m for m in api.methods() if m.name.startswith(("Create", "List", "Get")) and m.name != "GetConsoleLog"]
    assert len(creates) > 40
    special = {"GetProject": "id-alpha", "GetUser": "id-alpha-member"}
    for method in creates:
        request = good(method, api.ids | {"project": "id-alpha", "user": "id-alpha-member"})
        answer = await api.send(
            method, request, "admin" if method.name in ADMINS_ONLY or method.name in special else "alpha/member"
        )
        if method.name != "GetKeypair" or answer.code is not grpc.StatusCode.NOT_FOUND:
            assert answer.ok, (method.name, answer)


async def test_odd_names_come_back_as_they_are(api: Api) -> None:
    for name in ("'; DROP TABLE server; --", "../../etc/passwd", "%s%n{0}${x}", "日本語 \U0001f600", '" OR ""="', "<b>"):
        made = await api.make("CreateNetwork", name=name)
        assert made.name == name
        assert [n.id for n in (await api.make("ListNetworks", name=name)).networks] == [made.id]


# ---------------------------------------------------------------- what a field's own rules must stop


async def test_a_rules_cidr_is_nothing_but_a_cidr(api: Api) -> None:
    """It stands in the nodes' rulesets."""
    cidrs = (
        "fe80::%x; flush ruleset",
        "::%eth0/64",
        "fe80::%a b/64",
        "::1%\n",
        "1.2.3.4%x",
        "::/0; drop",
        "0/0",
        "::1/" + "9" * 5000,
    )
    for cidr, ipv6 in itertools.product(cidrs, (False, True)):
        fields = {"direction": 1, "ipv6": ipv6, "remote_cidr": cidr, "security_group_id": api.ids["security_group"]}
        answer = await api.call("CreateSecurityGroupRule", **fields)
        assert answer.fields == ("remote_cidr",), answer


async def test_usage_counts_nothing_that_is_still_to_come(api: Api) -> None:
    far = {"to": {"seconds": 253402300799}}
    now = await api.make("GetUsage")
    assert (await api.make("GetUsage", **far)).server_hours == now.server_hours
    for field, seconds in (("from", -1), ("to", -62135596800)):
        assert (await api.call("GetUsage", **{field: {"seconds": seconds}})).fields == (field,)
    early = await api.make("GetUsage", to={"seconds": 30 * 24 * 3600})
    assert getattr(early, "from").seconds == 0


# ---------------------------------------------------------------- below the fields


async def test_bytes_that_are_no_message(api: Api) -> None:
    """The second is a first field that is not UTF-8; the last is groups in groups."""
    before = await api.rows()
    garbage = (b"\xff", b"\x0a\x05\xff\xfe\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x7f", b"\x0b" * 10_000)
    for method, data in itertools.product(api.methods(), garbage):
        if not method.input_type.fields:
            continue  # Empty takes what it does not know
        answer = await api.send(method, data, "alpha/member")
        assert answer.code not in BROKEN and not INSIDES.search(answer.message), (method.name, answer)
        if method.input_type.fields[0].type == FieldDescriptor.TYPE_STRING or data != garbage[1]:
            assert not answer.ok, (method.name, data)
    assert await api.rows() == before


async def test_a_request_above_8_mib(api: Api) -> None:
    big = "x" * (8 << 20)
    for name, fields in (("CreateNetwork", {"name": big}), ("GetServer", {"server_id": big}), ("JoinNode", {"secret": big})):
        answer = await api.call(name, **fields)
        assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED, answer.code
    assert (await api.call("CreateServer", name="x", user_data=b"x" * (7 << 20))).code is not grpc.StatusCode.OK
    assert (await api.call("GetServer", server_id=api.ids["server"])).ok


async def test_a_thousand_reads_at_once(api: Api) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        answers = await asyncio.gather(*(api.call("ListServers") for _ in range(1000)))
    assert all(answer.ok for answer in answers)


# ---------------------------------------------------------------- metadata


async def test_authorization_of_every_shape(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    method, token = api.method("ListServers"), api.tokens["alpha/member"]
    request = good(method, api.ids)
    bad = ("", "Bearer", "Bearer ", "Basic YTpi", token, f"Bearer  {token}", f"Bearer {token} ", f"Bearer {token}x",
           f"Bearer {token[:-1]}", f"Bearer {token.upper()}", "Bearer ' OR 1=1 --", "Bearer " + "x" * 7000)  # fmt: skip
    for value in bad:
        answer = await api.send(method, request, None, [("authorization", value)])
        assert answer.code is grpc.StatusCode.UNAUTHENTICATED, (value[:40], answer)
    for two in ([f"Bearer {token}"] * 2, [f"Bearer {token}", f"Bearer {api.tokens['admin']}"], ["x", f"Bearer {token}"]):
        answer = await api.send(method, request, None, [("authorization", value) for value in two])
        assert answer.code is grpc.StatusCode.UNAUTHENTICATED, answer
    huge = await api.send(method, request, None, [("authorization", "Bearer " + "x" * 100_000)])
    assert huge.code not in (grpc.StatusCode.OK, *BROKEN[:2]), huge
    assert (await api.send(method, request, None, [("authorization", f"bearer {token}")])).ok
    assert token not in caplog.text


async def test_a_hostile_request_id_is_replaced(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    method = api.method("CreateNetwork")
    hostile = ("x" * 65, "a b", "../x", "<script>", "%0a%0d", "'; DROP", "{}", "")
    for value in hostile:
        answer = await api.send(method, good(method, api.ids), None, [("x-request-id", value)])
        echoed = answer.trailing["x-request-id"]
        assert echoed != value and re.fullmatch(r"[0-9a-f-]{36}", str(echoed)), (value, echoed)
        made = await api.send(method, good(method, api.ids), "alpha/member", [("x-request-id", value)])
        assert made.ok
    events = await api.make("ListEvents", page_size=1000)
    assert not {e.request_id for e in events.events} & set(hostile) - {""}
    assert not any(value and value in caplog.text for value in hostile)
    kept = await api.send(method, good(method, api.ids), None, [("x-request-id", "my-own.id_1")])
    assert kept.trailing["x-request-id"] == "my-own.id_1"


async def test_logins_with_everything(api: Api) -> None:
    """A name may not be used to break the slowing down of guesses, nor is any told from another."""
    refused = {(await api.call("CreateToken", None, user=user, password="wrong one")).message
               for user in ("alpha-member", "nobody", "'; --", "x" * 255, "日本")}  # fmt: skip
    assert len(refused) == 1
    for project in ("' OR 1", "x" * (1 << 20), "beta", "id-beta"):
        answer = await api.call("CreateToken", None, user="alpha-member", password=PASSWORD, project=project)
        assert answer.code is grpc.StatusCode.UNAUTHENTICATED, answer
