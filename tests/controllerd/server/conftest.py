from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controllerd.domain.policy import Caller
from controllerd.store.database import Tx
from tests.controllerd.server.rig import Rig


@pytest.fixture
async def rig(tmp_path: Path, runtime, clock) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path / "cloud.db", runtime, clock)
    await rig.open()
    yield rig
    await rig.close()


@pytest.fixture
async def tenant(rig: Rig) -> Caller:
    return await make_caller(rig, "alpha", "member")


@pytest.fixture
async def operator(rig: Rig) -> Caller:
    return await make_caller(rig, "operators", "admin")


@pytest.fixture
async def stranger(rig: Rig) -> Caller:
    return await make_caller(rig, "beta", "member")


async def make_caller(rig: Rig, project: str, role: str) -> Caller:
    def insert(tx: Tx) -> Caller:
        project_id = rig.runtime.new_id()
        user_id = f"user-{project}-{random.Random(project).getrandbits(32)}"
        into_project = "INSERT INTO project (id, name, description, enabled, created_at)"
        tx.run(f"{into_project} VALUES (?, ?, '', 1, ?)", project_id, project, tx.now)
        into_user = "INSERT INTO user (id, name, email, password_hash, enabled, created_at)"
        tx.run(f"{into_user} VALUES (?, ?, '', '', 1, ?)", user_id, user_id, tx.now)
        return Caller(user_id, user_id, project_id, project, frozenset({role}))

    return await rig.database.write(insert)
