"""The command, run in this process against a fake cloud."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from skyrack.cli.main import root
from tests.client.fake_api import PASSWORD, FakeApi, FakeCloud
from tests.pki import Pki

SETTINGS = ("ENDPOINT", "CA", "USER", "PASSWORD", "PROJECT", "TOKEN")


class Command:
    """`await command("server", "list")` as a user with SKYRACK_* set would type it."""

    def __init__(self, api: FakeApi) -> None:
        self.api = api
        self.environ: dict[str, str | None] = dict.fromkeys(f"SKYRACK_{name}" for name in SETTINGS)
        self.environ |= {"SKYRACK_ENDPOINT": api.address, "SKYRACK_CA": str(api.ca)}
        self.environ |= {"SKYRACK_USER": "alice", "SKYRACK_PASSWORD": PASSWORD}

    async def __call__(self, *words: str, input: str = "") -> Result:
        return await asyncio.to_thread(CliRunner().invoke, root, list(words), input=input, env=self.environ)

    async def ok(self, *words: str, input: str = "") -> str:
        """What it printed; it must have gone well."""
        result = await self(*words, input=input)
        assert result.exit_code == 0, (words, result.stdout, result.stderr, result.exception)
        return result.stdout


@pytest.fixture
def fake() -> FakeCloud:
    return FakeCloud()


@pytest.fixture
async def api(fake: FakeCloud, tmp_path: Path) -> AsyncIterator[FakeApi]:
    api = await FakeApi(fake, Pki(tmp_path / "pki")).start()
    yield api
    await api.stop()


@pytest.fixture
def skyrack(api: FakeApi) -> Command:
    return Command(api)
