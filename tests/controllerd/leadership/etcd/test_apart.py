"""etcd's leader moves away from the leading controller's machine, and only from there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from controllerd.leadership.etcd.apart import Apart
from tests.etcd import EtcdCluster


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(Path(tmp_path_factory.mktemp("apart")) / "etcd", members=3, tls=True) as cluster:
        yield cluster


async def leader(cluster: EtcdCluster) -> int:
    async with asyncio.timeout(20):
        while (found := await asyncio.to_thread(cluster.leader)) < 0:  # noqa: ASYNC110 (etcd is asked)
            await asyncio.sleep(0.1)
    return found


def of(cluster: EtcdCluster, name: str) -> Apart:
    return Apart(cluster.endpoints, cluster.tls_dir, name)


async def test_moves_away_from_the_controller(three: EtcdCluster) -> None:
    before = await leader(three)
    assert not await of(three, "elsewhere").step()
    assert not await of(three, f"m{(before + 1) % 3}").step()
    assert await leader(three) == before
    assert await of(three, f"m{before}").step()
    async with asyncio.timeout(20):
        while await leader(three) == before:  # noqa: ASYNC110 (etcd is asked)
            await asyncio.sleep(0.1)
    assert not await of(three, f"m{before}").step()


async def test_members_that_are_away_change_nothing(three: EtcdCluster) -> None:
    first = await leader(three)
    away = next(number for number in range(3) if number != first)
    three.kill(away)
    try:
        assert await of(three, f"m{first}").step()  # to the one that is left
    finally:
        three.restart(away)
        three.wait()
    assert not await Apart(["127.0.0.1:1"], three.tls_dir, "m0").step()
