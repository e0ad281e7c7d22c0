"""Option values with structure: "key=value", "net-id=..,v4-fixed-ip=..", port ranges, names to ids."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, TypeVar

import click

R = TypeVar("R")


class Pairs(click.ParamType[dict[str, str]]):
    """ "a=1,b=2" -> {"a": "1", "b": "2"}; only the `allowed` keys, of which the `required` must be there."""

    name = "pairs"

    def __init__(self, *allowed: str, required: Iterable[str] = ()) -> None:
        self._allowed, self._required = allowed, tuple(required)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return ",".join(f"{key}=.." for key in self._allowed)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        pairs: dict[str, str] = {}
        for part in str(value).split(","):
            key, sign, one = part.partition("=")
            if not sign or key.strip() not in self._allowed:
                self.fail(f"{part!r} is not one of {', '.join(f'{name}=..' for name in self._allowed)}", param, ctx)
            pairs[key.strip()] = one.strip()
        for key in self._required:
            if key not in pairs:
                self.fail(f"{key}=.. is missing", param, ctx)
        return pairs


class KeyValue(click.ParamType[tuple[str, str]]):
    """ "key=value" -> (key, value); the value may hold anything."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        key, sign, one = str(value).partition("=")
        if not sign or not key:
            self.fail(f"{value!r} is not key=value", param, ctx)
        return key, one


class PortRange(click.ParamType[tuple[int, int]]):
    """ "22" -> (22, 22), "8000:8010" -> (8000, 8010)."""

    name = "port[:port]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        low, _sign, high = str(value).partition(":")
        if not low.isdecimal() or not (high or low).isdecimal() or int(low) > int(high or low):
            self.fail(f"{value!r} is not a port or a range like 8000:8010", param, ctx)
        return int(low), int(high or low)


class Moment(click.ParamType[datetime.datetime]):
    """A date or ISO 8601 moment; without a time zone it is UTC."""

    name = "date"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime.datetime:
        if isinstance(value, datetime.datetime):
            return value
        try:
            moment = datetime.datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a date like 2026-05-31 or 2026-05-31T12:00", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


async def find_all(collection: Any, names: Sequence[str]) -> list[Any]:
    """The resources of these names or ids, in this order. Errors: NotFound, Ambiguous."""
    return list(await asyncio.gather(*(collection.find(name) for name in names)))


async def find_one(collection: Any, name: str | None) -> Any:
    """The resource, or None where no name was given."""
    return await collection.find(name) if name else None


async def first(limit: int, rows: AsyncIterator[R]) -> list[R]:
    """At most `limit` of them; further pages are not asked for."""
    taken: list[R] = []
    async for row in rows:
        taken.append(row)
        if len(taken) >= limit:
            break
    return taken
