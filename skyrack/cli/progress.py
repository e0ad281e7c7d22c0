"""How long things take, shown on standard error: bars for bytes, a moving line for waits. Silent or plain when nobody looks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from skyrack.cli.output import one_line


@contextlib.contextmanager
def byte_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function of (bytes so far, bytes in all)."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(one_line(label), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def steps(kind: str, name: str, *, launch: bool = False) -> Iterator[Callable[[Any], None]]:
    """Gives a function of the record: each new state, and with `launch` each new step of its timeline, is told once."""
    teller = _Teller(f"{kind} {name}", launch)
    if not sys.stderr.isatty():

        def tell(record: Any) -> None:
            for line in teller.news(record):
                click.echo(one_line(line), err=True)

        yield tell
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    with console.status(Text(one_line(f"{kind} {name}"))) as status:

        def show(record: Any) -> None:
            for line in teller.news(record):
                console.print(Text(one_line(line), style="dim"))
                status.update(Text(one_line(line)))

        yield show


class _Teller:
    """Remembers what was told."""

    def __init__(self, label: str, launch: bool) -> None:
        self._label, self._launch = label, launch
        self._state = ""
        self._told: set[str] = set()

    def news(self, record: Any) -> list[str]:
        lines = []
        for entry in record.timeline if self._launch else ():
            if entry.name not in self._told:
                self._told.add(entry.name)
                lines.append(f"{self._label}: {entry.name} after {entry.since_accepted_ms} ms")
        if record.state != self._state:
            self._state = record.state
            lines.append(f"{self._label}: {record.state}")
        return lines
