"""Hostile values for every field of every request, found by descriptor: a new field is attacked from its birth.

`evil` values must be refused wherever they are stored or acted upon; `odd` ones look bad and may be quite right (a name may
hold quotes); `foreign` ones name what is another project's.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tests.controllerd.api.rig import PUBLIC_KEY
from tests.controllerd.identity.conftest import PASSWORD

MANY = 10_000
NOBODY = "00000000-0000-4000-8000-000000000000"
EVIL_TEXT = (
    "x" * (1 << 20), "a\x00b", "a\nb", "\r\n\r\nHTTP/1.1 200", "\x1b[31m", "\u202egnp.exe", "a\u2028b", "a\u200bb", "\ue000",
)  # fmt: skip
ODD_TEXT = (
    "", "   ", "'; DROP TABLE server; --", '" OR ""="', "../../../../etc/passwd", "%s%n{0}${x}", "9" * 5000, "-1",
    "fe80::%x; flush ruleset", "not-an-id", NOBODY, NOBODY.upper(), "\U0001f600" * 64,
)  # fmt: skip
# Tokens of pages that no list gave: from the outside, some look as if one had.
_MARKERS = (
    "1", "[]", "{}", "[1]", '[1,"a",2]', '["a","b"]', "[1,1]", '[NaN,"a"]', '[Infinity,"a"]', '[1e400,"a"]', '[1e300,"a"]',
    '[-1e300,"a"]', '[1e18,"\\ud800"]', f'[{"9" * 300},"a"]', "[" * 370, '[null,"a"]', '[true,["a"]]', '{"a":1,"b":2}', '"ab"',
    "[1,{}]", '[1,"a\\u0000b"]', '[1,"a\\nb"]',
)  # fmt: skip
TOKENS = (
    *(base64.urlsafe_b64encode(marker.encode()).decode() for marker in _MARKERS),
    "!", "=", "\u00e9", "A", "x" * 100_000, "A" * 511, "\x00",
)  # fmt: skip
INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1), FieldDescriptor.CPPTYPE_UINT32: ((1 << 32) - 1,),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1, 1 << 53),
    FieldDescriptor.CPPTYPE_UINT64: ((1 << 64) - 1, 1 << 63, (1 << 63) - 1, 1 << 53),
}  # fmt: skip
TIMES = (
    Timestamp(seconds=(1 << 63) - 1), Timestamp(seconds=-(1 << 63)), Timestamp(seconds=253402300800),
    Timestamp(seconds=1, nanos=-1), Timestamp(seconds=1, nanos=(1 << 31) - 1),
)  # fmt: skip

_number = itertools.count(1)


@dataclass(frozen=True)
class Attack:
    """`field`: the one of the request that is wrong. `kind`: "evil", "odd", "foreign"."""

    field: str
    kind: str
    request: Message
    what: str

    def __str__(self) -> str:
        return f"{type(self.request).__name__}.{self.field} = {self.what}"


def attacks(method: MethodDescriptor, ids: Mapping[str, str]) -> Iterator[Attack]:
    """Requests that are right but for one field."""
    nouns = [noun for noun in ids if "/" not in noun]
    foreign = {noun: ids[f"beta/{noun}"] for noun in nouns if ids[f"beta/{noun}"] != ids[noun]}
    for field in method.input_type.fields:
        for kind, value in _values(field, foreign):
            request = good(method, ids)
            _set(request, field, value)
            yield Attack(field.name, kind, request, repr(value)[:80])


def good(method: MethodDescriptor, ids: Mapping[str, str]) -> Message:
    """A request that nothing is wrong with."""
    fields: dict[str, Any] = dict(_creates(method.name, ids, next(_number)))
    for field in method.input_type.fields:
        noun = field.name.removesuffix("_id")
        if not fields and not method.name.startswith(("List", "Watch")) and noun != field.name and not field.has_presence:
            fields |= {
                f.name: ids[f.name[:-3]] for f in method.input_type.fields if f.name.endswith("_id") and not f.has_presence
            }
        if field.name.startswith("replace_"):
            fields[field.name] = True
    return message_factory.GetMessageClass(method.input_type)(**fields)


def _creates(name: str, ids: Mapping[str, str], number: int) -> Mapping[str, Any]:
    named = {"name": f"n{number}"}
    ingress = {"direction": 1, "protocol": "tcp", "port_min": number % 65535 + 1}
    machine = {"flavor_id": ids["flavor"], "image_id": ids["image"], "networks": [{"network_id": ids["network"]}]}
    role = {"user_id": "id-beta-reader", "project_id": "id-beta", "role": "member"}
    return {
        "CreateToken": {"user": "alpha-member", "password": PASSWORD}, "CreateProject": named,
        "CreateUser": named | {"password": PASSWORD}, "GrantRole": role, "RevokeRole": role,
        "UpdateUser": {"user_id": "id-beta-reader"}, "UpdateProject": {"project_id": "id-beta"},
        "CreateImage": named | {"format": "raw"}, "UploadImage": {"begin": {"image_id": ids["image"]}},
        "CreateNetwork": named, "CreatePort": {"network_id": ids["network"]}, "CreateRouter": named,
        "CreateSubnet": {"network_id": ids["network"], "cidr": f"172.{16 + number // 256 % 16}.{number % 256}.0/24"},
        "CreateFloatingIp": {"external_network_id": ids["external_network"]}, "CreateSecurityGroup": named,
        "CreateSecurityGroupRule": ingress | {"security_group_id": ids["security_group"]},
        "CreateServer": named | machine, "CreateVolume": named | {"size_gib": 1},
        "CreateFlavor": named | {"vcpus": 1, "memory_mib": 512, "disk_gib": 1},
        "CreateKeypair": named | {"public_key": PUBLIC_KEY}, "CreateJoinToken": named | {"roles": ["compute"]},
        "JoinNode": named | {"secret": "s", "csr_pem": b"x"},
    }.get(name, {})  # fmt: skip


def _values(field: FieldDescriptor, foreign: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    if field.type == field.TYPE_BOOL:
        return
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        yield from _maps(field)
    elif field.is_repeated:
        yield "evil", [_plain(field)] * MANY
        yield from ((kind, [value]) for kind, value in _singles(field, foreign))
    else:
        yield from _singles(field, foreign)


def _plain(field: FieldDescriptor) -> Any:
    return message_factory.GetMessageClass(field.message_type)() if field.message_type else "x"


def _maps(field: FieldDescriptor) -> Iterator[tuple[str, Any]]:
    value = field.message_type.fields_by_name["value"]
    if value.type == value.TYPE_STRING:
        yield "evil", {f"k{n}": "v" for n in range(MANY)}
        yield from (("evil", {text: "v"}) for text in (*EVIL_TEXT, ""))
        yield from (("evil", {"k": text}) for text in EVIL_TEXT)
    else:
        yield "evil", {f"k{n}": 1 for n in range(MANY)}
        yield from (("evil", {"servers": number}) for number in (-(1 << 63), (1 << 63) - 1, -2))
        yield from (("evil", {text: 1}) for text in EVIL_TEXT)


def _singles(field: FieldDescriptor, foreign: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    if field.message_type is not None and field.message_type.full_name == "google.protobuf.Timestamp":
        yield from (("evil", value) for value in TIMES)
    elif field.message_type is not None:
        yield "odd", _plain(field)
        for inner in field.message_type.fields:
            for kind, value in _values(inner, foreign):
                message = _plain(field)
                _set(message, inner, value)
                yield kind, message
    elif field.enum_type is not None:
        yield from (("evil", value) for value in (99, -1, (1 << 31) - 1))
    elif field.name == "page_token":
        yield from (("evil", value) for value in TOKENS)
    elif field.type == field.TYPE_STRING:
        yield from (("evil", value) for value in EVIL_TEXT)
        yield from (("odd", value) for value in ODD_TEXT)
        yield from (("foreign", value) for value in [foreign.get(field.name.removesuffix("_id"), "")] if value)
    elif field.type == field.TYPE_BYTES:
        yield "odd", b""
        yield from (("evil", value) for value in (b"\xff" * (1 << 20),))
    else:
        yield "odd", 0
        yield from (("evil", value) for value in INTEGERS[field.cpp_type])


def _set(message: Message, field: FieldDescriptor, value: Any) -> None:
    message.ClearField(field.name)
    if isinstance(value, dict):
        getattr(message, field.name).update(value)
    elif isinstance(value, list):
        getattr(message, field.name).extend(value)
    elif isinstance(value, Message):
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)
