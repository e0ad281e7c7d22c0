"""How answers look, and that nothing the cloud says can drive the terminal."""

from __future__ import annotations

import dataclasses
import datetime
import json

import pytest

from skyrack.cli.output import Details, Done, Table, Text, clean, fitted, one_line, render


@dataclasses.dataclass(frozen=True)
class Thing:
    id: str
    name: str
    on: bool = True
    at: datetime.datetime | None = datetime.datetime(2026, 5, 31, 12, 0, tzinfo=datetime.UTC)
    parts: tuple[str, ...] = ()


TABLE = Table([Thing("1", "one"), Thing("22", "")], {"ID": "id", "Name": "name", "Long name": lambda row: row.name * 2})


def test_plain_table() -> None:
    assert render(TABLE, "table", (), terminal=False) == (
        "ID  Name  Long name\n"
        "1   one   oneone\n"
        "22  -     -"
    )  # fmt: skip


def test_values_and_columns() -> None:
    assert render(TABLE, "value", ("id", "long-name"), terminal=False) == "1 oneone\n22 "
    assert render(Details(Thing("1", "one")), "value", ("Name",), terminal=False) == "one"
    with pytest.raises(KeyError):
        render(TABLE, "table", ("size",), terminal=False)


def test_json() -> None:
    assert json.loads(render(TABLE, "json", (), terminal=False))[0] == {
        "id": "1", "name": "one", "on": True, "at": "2026-05-31T12:00:00Z", "parts": [],
    }  # fmt: skip
    assert json.loads(render(Details(Thing("1", "x"), {"name": "shown"}), "json", ("name",), terminal=False)) == {"name": "x"}
    assert json.loads(render(Done("gone", {"deleted": ["1"]}), "json", (), terminal=False)) == {"deleted": ["1"]}
    assert render(Table([], {"ID": "id"}), "json", (), terminal=False) == "[]"


def test_details_of_several_lines() -> None:
    details = Details(Thing("1", "one", parts=("a", "b")), {"name": "first\nsecond", "at": None, "on": None})
    assert render(details, "table", (), terminal=False) == (
        "Field  Value\n"
        "id     1\n"
        "name   first\n"
        "       second\n"
        "parts  a, b"
    )  # fmt: skip


HOSTILE = "a\x1b[31mred\x1b]0;title\x07\x9b2J\rb\x00\u202etxt\x1b(Bz"


def test_control_characters_go() -> None:
    assert clean(HOSTILE) == "ared2Jbtxtz"
    assert clean("line\n\ttab") == "line\n\ttab"
    assert one_line("two\nlines ") == "two lines"
    table = Table([Thing("1", HOSTILE)], {"ID": "id", "Name": "name"})
    for terminal in (True, False):
        assert "red\x1b]0" not in render(table, "table", (), terminal=terminal)
        assert "\u202e" not in render(table, "table", (), terminal=terminal)
    assert "\x1b" not in render(table, "table", (), terminal=False)
    assert "\x1b" not in render(table, "json", (), terminal=False)
    assert render(Text("log " + HOSTILE, "console_log"), "table", (), terminal=True) == "log ared2Jbtxtz"


def test_table_for_a_terminal_keeps_names_literal() -> None:
    assert "[bold]x[/bold]" in render(Table([Thing("1", "[bold]x[/bold]")], {"Name": "name"}), "table", (), terminal=True)


def test_columns_fit_the_terminal() -> None:
    assert fitted([(36, 36), (4, 20)], 100) == [36, 20]  # all fits
    assert fitted([(36, 36), (4, 20), (4, 4)], 50) == [36, 10, 4]  # the one that can is narrower
    assert fitted([(36, 36), (4, 20)], 39) == []  # words and ids are not cut


def test_a_terminal_that_is_too_narrow_gets_whole_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "12345678-" * 4
    table = Table([Thing(name, "a few words of a name")], {"ID": "id", "Name": "name"})
    for columns, framed in (("80", True), ("50", True), ("40", False)):
        monkeypatch.setenv("COLUMNS", columns)
        shown = render(table, "table", (), terminal=True)
        assert name in shown and ("│" in shown) is framed
        assert not framed or max(map(len, shown.splitlines())) <= int(columns) + 30  # styles take some
