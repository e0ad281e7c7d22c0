"""From protobuf messages to the frozen dataclasses that users see, driven by the dataclass: its fields are the message's.

Timestamps become aware UTC datetimes (None when unset), enums their short names ("SERVER_STATE_ACTIVE" -> "ACTIVE"), repeated
fields tuples, maps dicts, messages records of their own (None when unset), optional numbers None when unset.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

R = TypeVar("R")


def to_record(cls: type[R], message: Message) -> R:
    """`cls` filled from `message`. A field the message's type does not have is our bug and raises KeyError."""
    values = {
        name: convert(getattr(message, name), message, name)
        for name, convert in _plan(typing.cast(Any, cls), typing.cast(Any, type(message)))
    }
    return cls(**values)


def enum_number(enum: EnumDescriptor, label: str) -> int:
    """The number of "ACTIVE" in an enum with SERVER_STATE_ACTIVE. Errors: KeyError."""
    return int(enum.values_by_name[_prefix(enum) + label.upper()].number)


Convert = Callable[[Any, Message, str], Any]


@functools.cache
def _plan(*classes: Any) -> list[tuple[str, Convert]]:
    cls, message_type = classes
    hints = typing.get_type_hints(cls)
    fields = message_type.DESCRIPTOR.fields_by_name
    return [(field.name, _converter(hints[field.name], fields[field.name])) for field in dataclasses.fields(cls)]


def _converter(hint: Any, field: Any) -> Convert:
    message_type = field.message_type
    if message_type is not None and message_type.GetOptions().map_entry:
        return lambda value, _message, _name: dict(value)
    single = _single(hint, field)
    if field.is_repeated:
        return lambda values, _message, _name: tuple(single(value) for value in values)
    if message_type is not None or type(None) in typing.get_args(hint):
        return lambda value, message, name: single(value) if message.HasField(name) else None
    return lambda value, _message, _name: single(value)


def _single(hint: Any, field: Any) -> Callable[[Any], Any]:
    if field.enum_type is not None:
        labels = _labels(field.enum_type)
        return lambda number: labels.get(number, f"UNKNOWN_{number}")
    if field.message_type is None:
        return lambda value: value
    if field.message_type.full_name == "google.protobuf.Timestamp":
        return lambda value: value.ToDatetime(tzinfo=datetime.UTC)
    nested = next(option for option in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(option))
    return lambda value: to_record(typing.cast(type[Any], nested), value)


def _labels(enum: EnumDescriptor) -> dict[int, str]:
    return {value.number: value.name.removeprefix(_prefix(enum)) for value in enum.values}


def _prefix(enum: EnumDescriptor) -> str:
    """ "SERVER_STATE_" for ServerState: all its names begin so."""
    zero = str(enum.values_by_number[0].name)
    return zero.removesuffix("UNSPECIFIED")
