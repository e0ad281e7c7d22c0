"""A real store on a temporary directory, and callers."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from controllerd.app.cloud import Cloud
from controllerd.domain.policy import Caller
from controllerd.leadership.commit_log import LocalLog
from controllerd.store.database import Database, Tx
from daemonkit.runtime import InlineThreads, Runtime


class ManualClock:
    """Moves only when told."""

    def __init__(self, start_s: float = 1_700_000_000.0) -> None:
        self.now_s = start_s

    def wall_s(self) -> float:
        return self.now_s

    def boottime_s(self) -> float:
        return self.now_s

    def forward(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def runtime(clock: ManualClock) -> Runtime:
    return Runtime(clock, random.Random(1), lambda _name, _workers: InlineThreads())


@pytest.fixture
async def database(tmp_path: Path, runtime: Runtime) -> AsyncIterator[Database]:
    database = Database(tmp_path / "state.db", LocalLog(), runtime)
    await database.open()
    commits = asyncio.create_task(database.run())
    yield database
    commits.cancel()
    with suppress(asyncio.CancelledError):
        await commits
    await database.close()


@pytest.fixture
def cloud(database: Database, runtime: Runtime) -> Cloud:
    return Cloud(database, runtime)


@pytest.fixture
async def caller(database: Database) -> Callable[..., Awaitable[Caller]]:
    """`caller("project", "member")`: makes project and user rows as needed."""
    made: dict[str, Caller] = {}

    async def make(project: str = "alpha", role: str = "member") -> Caller:
        def insert(tx: Tx) -> Caller:
            pid = str(uuid.UUID(int=random.Random(project).getrandbits(128), version=4))
            uid = f"user-{project}-{role}"
            tx.run("INSERT OR IGNORE INTO project VALUES (?, ?, '', 1, ?)", pid, project, tx.now)
            tx.run("INSERT OR IGNORE INTO user VALUES (?, ?, '', '', 1, ?)", uid, uid, tx.now)
            tx.run("INSERT OR IGNORE INTO role_assignment VALUES (?, ?, ?)", uid, pid, role)
            return Caller(uid, uid, pid, project, frozenset({role}))

        key = f"{project}/{role}"
        if key not in made:
            made[key] = await database.write(insert)
        return made[key]

    return make


@pytest.fixture
async def admin(caller: Callable[..., Awaitable[Caller]]) -> Caller:
    return await caller("operators", "admin")


@pytest.fixture
async def member(caller: Callable[..., Awaitable[Caller]]) -> Caller:
    return await caller("alpha", "member")
