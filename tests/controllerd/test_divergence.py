"""A copy that did not fit its log is not taken up again by a restart, whatever the log holds by then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controllerd import divergence
from controllerd.bootstrap import bootstrap
from controllerd.config import ControllerConfig
from controllerd.controller import Controller
from controllerd.leadership import key
from controllerd.leadership.commit_log import CommitLog
from controllerd.leadership.entry import Diverged, Unusable
from controllerd.leadership.kv import Put
from controllerd.leadership.member import Member
from controllerd.leadership.memory import MemoryKv, MemoryStore
from controllerd.restore import from_leader
from controllerd.store.restored import cluster_id_of
from controllerd.terms import Contender
from daemonkit.errors import ConfigError
from daemonkit.runtime import Runtime
from tests.controllerd.test_bootstrap import clustered


@pytest.fixture
async def config(tmp_path: Path, runtime: Runtime) -> ControllerConfig:
    config = clustered(tmp_path / "c1", "c1", "10.0.0.1")
    await bootstrap(config, [], tmp_path / "admin.env", runtime)
    return config


async def ended(config: ControllerConfig, cluster_id: str, runtime: Runtime) -> BaseException:
    """What ends a controller beside a leader whose log is of that cloud, and is not the one that its copy followed."""
    kv = MemoryKv(MemoryStore())
    leader = Member("c2", "10.0.0.2:7700", "10.0.0.2:7701", "1", 1)
    slot = Put(key.slot(1), b"an entry")
    await kv.txn([], [Put(key.CLUSTER, cluster_id.encode()), Put(key.LEADER, leader.encode()), slot])

    def build(_log: CommitLog) -> Controller:
        raise AssertionError("it leads")

    @asynccontextmanager
    async def answer(_controller: Controller) -> AsyncIterator[None]:
        yield

    async def fetch(_leader: Member, _into: Path) -> None:
        raise AssertionError("it takes a snapshot")

    contender = Contender(config, config.data_dir / "state.db", kv, fetch, runtime)
    running = asyncio.create_task(contender.run(build, answer))
    await asyncio.wait([running], timeout=30)
    error = running.exception()
    assert error is not None
    return error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error


async def test_it_is_remembered_until_the_copy_is_replaced(config: ControllerConfig, runtime: Runtime) -> None:
    state = config.data_dir / "state.db"
    divergence.check(state)
    assert type(await ended(config, cluster_id_of(state), runtime)) is Diverged
    with pytest.raises(ConfigError, match=r"which the log has not.*restore --from-leader"):
        divergence.check(state)
    assert "kept" in from_leader(config, runtime)
    divergence.check(state)


async def test_a_copy_beside_another_clouds_log_may_be_right(config: ControllerConfig, runtime: Runtime) -> None:
    assert type(await ended(config, "another", runtime)) is Unusable
    divergence.check(config.data_dir / "state.db")
