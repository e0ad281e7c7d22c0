"""Rows as objects: what goes in comes out, and a long page costs little."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import pytest

from controllerd.app.cloud import Cloud
from controllerd.domain import check
from controllerd.domain.flavor import Flavor
from controllerd.domain.image import queued
from controllerd.domain.page import Page
from controllerd.domain.task import Task
from controllerd.store.database import Database, Tx
from controllerd.store.flavor import FLAVORS
from controllerd.store.image import IMAGES
from controllerd.store.server import SERVERS
from controllerd.store.table import Table
from controllerd.store.task import TASKS
from daemonkit.errors import InvalidArgument, NotFound

ROWS = 1000


@dataclass(frozen=True)
class Strict:
    id: str
    name: str
    created_at: float

    def __post_init__(self) -> None:
        check.between("name", len(self.name), 3, 5)


async def test_there_and_back(database: Database) -> None:
    image = queued("i", "name", "p", True, "raw", 1, 2, {"a": "ä\"'"}, 12.5)
    task = Task("t", "k", "p", "x", "r", {"a": "1"}, "RUNNING", 1, True, {"s": 1.5}, "", "", ("d", "e"), 1.0, 2.0, 0.0, "", "")
    await database.write(lambda tx: (IMAGES.insert(tx, image), TASKS.insert(tx, task)))
    assert await database.read(lambda tx: (IMAGES.get(tx, "i"), TASKS.get(tx, "t"))) == (image, task)
    changed = replace(task, args={}, fault_details=(), entered=False)
    await database.write(lambda tx: TASKS.update(tx, "t", args={}, fault_details=(), entered=False))
    assert await database.read(lambda tx: TASKS.get(tx, "t")) == changed
    for act in (lambda tx: TASKS.update(tx, "no", state="DONE"), lambda tx: TASKS.get(tx, "no")):
        with pytest.raises(NotFound):
            await database.write(act)
    assert await database.write(lambda tx: (TASKS.delete(tx, "t"), TASKS.delete(tx, "t"))) == (True, False)


async def test_a_stricter_rule_does_not_make_old_rows_unreadable(database: Database) -> None:
    table = Table(Strict, "strict", "strict")

    def fill(tx: Tx) -> None:
        tx.run("CREATE TABLE strict (id TEXT PRIMARY KEY, name TEXT, created_at REAL)")
        tx.run("INSERT INTO strict VALUES ('a', 'much too long', 1.0)")

    await database.write(fill)
    old = await database.read(lambda tx: table.get(tx, "a"))
    assert old.name == "much too long"
    with pytest.raises(InvalidArgument):
        replace(old, created_at=2.0)


async def test_a_page_of_a_thousand_servers(database: Database) -> None:
    """Generous limits: the machine may be busy. Best of five: 5 to 10 ms on an idle one."""
    columns = {name: ("''" if kind == "TEXT" else "0") for name, kind in await column_kinds(database, "server")}
    columns |= {"metadata": "'{}'", "placement": "'{}'", "fault_details": "'[]'", "observed_attached": "'[]'"}
    columns |= {"observed_milestones": "'{}'", "project_id": "'p'", "id": "'s' || value", "created_at": "value"}
    insert = f"INSERT INTO server ({', '.join(columns)}) SELECT {', '.join(columns.values())} FROM json_each(?)"
    await database.write(lambda tx: tx.run(insert, str([*range(ROWS)])))
    took_s = []
    for _ in range(5):
        start_s = time.perf_counter()
        page = await database.read(lambda tx: SERVERS.page(tx, Page(ROWS), "project_id = ?", "p"))
        took_s.append(time.perf_counter() - start_s)
        assert len(page.items) == ROWS and not page.next_token
    print(f"a page of {ROWS} servers: {min(took_s) * 1000:.1f} ms")
    assert min(took_s) < 0.15


async def column_kinds(database: Database, table: str) -> list[tuple[str, str]]:
    rows = await database.read(lambda tx: tx.all(f"SELECT name, type FROM pragma_table_info('{table}')"))
    return [(row["name"], row["type"]) for row in rows]


async def test_a_page_is_found_by_index(cloud: Cloud) -> None:
    flavor = Flavor("f", "n", "p", 1, 512, 1, "", 1.0)
    await cloud.database.write(lambda tx: FLAVORS.insert(tx, flavor))
    for table in ("server", "volume", "port", "network", "router"):
        sql = f"EXPLAIN QUERY PLAN SELECT * FROM {table} WHERE project_id = 'p' AND (created_at, id) > (1, 'x')"
        sql += " ORDER BY created_at, id LIMIT 100"
        plan = " ".join(row["detail"] for row in await cloud.database.read(lambda tx, sql=sql: tx.all(sql)))
        assert f"{table}_project" in plan and "TEMP B-TREE" not in plan, plan
