"""The stage of every benchmark: a rack of its own, and one way to print results."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from skyrack.client.cloud import Cloud
from skyrack.sandbox.rack import Rack
from skyrack.sandbox.up import bring_up, environment

COUNTS = {"controllers": 1, "networks": 1, "computes": 1, "storages": 1}


@asynccontextmanager
async def rack(name: str, **counts: int) -> AsyncIterator[Rack]:
    """A sandbox `name`, brought up for this run and cleared away after it, whatever happens."""
    stage = Rack(name)
    await stage.down()
    try:
        await bring_up(stage, COUNTS | counts, lambda line: print(f"  {line}", file=sys.stderr))
        yield stage
    finally:
        await asyncio.shield(stage.down())


def operator(stage: Rack) -> Cloud:
    return Cloud.connect(environ=environment(stage))


def median(values: Sequence[float]) -> float:
    return percentile(values, 50)


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], result: Mapping[str, Any]) -> None:
    """A table for people; with --json on the command line the result as one JSON object on the last line."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row))
    Console().print(table)
    if "--json" in sys.argv:
        print(json.dumps(result))
