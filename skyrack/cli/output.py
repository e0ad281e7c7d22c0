"""What commands answer, and how it is shown: tables for people, values for scripts, one JSON document for programs.

Everything the cloud says passes `clean` before it reaches a terminal, so that a name cannot carry an escape sequence.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[ -/]*[0-~])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_WORD_MAX = 40  # ids, names of states and addresses are shorter and stay whole
_GOOD, _BAD = ("ACTIVE", "UP", "DONE", "AVAILABLE", "IN_USE"), ("ERROR", "DOWN", "FAILED", "UNKNOWN")

Cell = str | Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of records. `columns`: title -> attribute, or a function of the record."""

    rows: Sequence[Any]
    columns: Mapping[str, Cell]


@dataclasses.dataclass(frozen=True)
class Details:
    """One record. `shown` replaces what its fields say to people; None leaves a field out."""

    record: Any
    shown: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Done:
    """A sentence for people and what to tell programs instead."""

    text: str
    data: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Text:
    """Text as it is (its control characters apart). `key` names it in JSON."""

    text: str
    key: str


Output = Table | Details | Done | Text


def whose(columns: Mapping[str, Cell], all_projects: bool) -> Mapping[str, Cell]:
    """The columns of a list, with Project where rows of several stand together."""
    return {**columns, "Project": "project_id"} if all_projects else columns


def clean(text: str) -> str:
    """Without terminal escapes, control characters (line feed and tab stay) and marks that turn the writing around."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def one_line(text: str) -> str:
    return " ".join(clean(text).split())


def render(output: Output, form: str, columns: Sequence[str], *, terminal: bool) -> str:
    """`form`: "table", "value" or "json". `columns`: only these, by title or field name. Errors: KeyError for another."""
    if form == "json":
        return json.dumps(_document(output, columns), indent=2)
    if isinstance(output, Done | Text):
        return clean(output.text).removesuffix("\n")
    if isinstance(output, Table):
        titles = _chosen(list(output.columns), columns)
        cells = [[_cell(row, output.columns[title]) for title in titles] for row in output.rows]
        return _values(cells) if form == "value" else _grid(titles, cells, terminal)
    pairs = _pairs(output)
    titles = _chosen(list(pairs), columns)
    if form == "value":
        return "\n".join(text(pairs[title]) for title in titles)
    return _grid(["Field", "Value"], [[title, text(pairs[title])] for title in titles], terminal)


def plain(value: Any) -> Any:
    """What JSON can hold of a record: dataclasses as objects, moments in ISO 8601 UTC."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def text(value: Any) -> str:
    """A value for people, on one line unless it has lines of its own."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(str(key))}={text(one)}" for key, one in sorted(value.items()))
    if isinstance(value, list | tuple):
        return ", ".join(text(one) for one in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return text({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    return f"{value:.2f}" if isinstance(value, float) else clean(str(value))


def _document(output: Output, columns: Sequence[str]) -> Any:
    if isinstance(output, Done):
        return plain(output.data)
    if isinstance(output, Text):
        return {output.key: output.text}
    if isinstance(output, Table):
        return [_some(plain(row), columns) for row in output.rows]
    return _some(plain(output.record), columns)


def _some(document: dict[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    return {key: document[key] for key in _chosen(list(document), columns)}


def _chosen(titles: list[str], columns: Sequence[str]) -> list[str]:
    known = {_folded(title): title for title in titles}
    for column in columns:
        if _folded(column) not in known:
            raise KeyError(f"no column {column!r}; there are {', '.join(titles)}")
    return [known[_folded(column)] for column in columns] or titles


def _folded(title: str) -> str:
    return title.lower().replace(" ", "_").replace("-", "_")


def _cell(row: Any, cell: Cell) -> str:
    return one_line(text(getattr(row, cell) if isinstance(cell, str) else cell(row)))


def _pairs(output: Details) -> dict[str, Any]:
    fields = {field.name: getattr(output.record, field.name) for field in dataclasses.fields(output.record)}
    return {name: value for name, value in {**fields, **output.shown}.items() if value is not None}


def _values(cells: Sequence[Sequence[str]]) -> str:
    return "\n".join(" ".join(row) for row in cells)


def _grid(titles: Sequence[str], cells: Sequence[Sequence[str]], terminal: bool) -> str:
    if not terminal:
        return _plain_grid(titles, cells)
    frame = len(titles) * 3 + 1
    widths = fitted([_lengths(column) for column in zip(titles, *cells, strict=True)], _columns() - frame)
    return _rich(titles, cells, widths) if widths else _plain_grid(titles, cells)


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _lengths(column: Sequence[str]) -> tuple[int, int]:
    """Of the longest word (one that is longer than an id may be broken), and of the longest line."""
    words = [word for cell in column for word in cell.split()]
    lines = [line for cell in column for line in cell.split("\n")]
    return min(max(map(len, words), default=0), _WORD_MAX), max(map(len, lines), default=0)


def fitted(lengths: Sequence[tuple[int, int]], room: int) -> list[int]:
    """The width of each column, given (the least, the best) of each; [] when there is no room for the least."""
    widths = [least for least, _best in lengths]
    spare = room - sum(widths)
    if spare < 0:
        return []
    by_want = sorted(range(len(lengths)), key=lambda place: lengths[place][1] - lengths[place][0])
    for left, place in zip(range(len(lengths), 0, -1), by_want, strict=True):
        more = max(0, min(lengths[place][1] - widths[place], spare // left))
        widths[place] += more
        spare -= more
    return widths


def _plain_grid(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines: list[list[str]] = [list(titles)]
    for row in cells:
        split = [cell.split("\n") for cell in row]
        for number in range(max(len(parts) for parts in split)):
            lines.append([parts[number] if number < len(parts) else "" for parts in split])
            lines[-1] = [part or ("-" if number == 0 else "") for part in lines[-1]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    return "\n".join("  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def _rich(titles: Sequence[str], cells: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text as RichText

    table = RichTable(box=box.ROUNDED, header_style="bold")
    for title, width in zip(titles, widths, strict=True):
        table.add_column(title, width=max(width, 1), overflow="fold")
    for row in cells:
        table.add_row(*(RichText(cell or "-", style=_style(cell)) for cell in row))
    console = Console(file=sys.stdout, width=_columns())
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip("\n")


def _style(cell: str) -> str:
    return "green" if cell in _GOOD else "bold red" if cell in _BAD else ""
