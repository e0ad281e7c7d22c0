"""A fake cloud on a port of 127.0.0.1, and a client logged in to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from skyrack.client import Cloud, Patience
from tests.client.fake_api import PASSWORD, FakeApi, FakeCloud
from tests.pki import Pki

QUICK = Patience(connect_s=2.0, first_s=0.5, total_s=5.0, pause_min_s=0.02, pause_max_s=0.2)


@pytest.fixture
def fake() -> FakeCloud:
    return FakeCloud()


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


@pytest.fixture
async def api(fake: FakeCloud, pki: Pki) -> AsyncIterator[FakeApi]:
    api = await FakeApi(fake, pki).start()
    yield api
    await api.stop()


@pytest.fixture
async def cloud(api: FakeApi) -> AsyncIterator[Cloud]:
    async with connected(api, api.address) as cloud:
        yield cloud


def connected(api: FakeApi, *endpoints: str) -> Cloud:
    return Cloud.connect(endpoints, ca=api.ca, user="alice", password=PASSWORD, project="lab", patience=QUICK, environ={})
