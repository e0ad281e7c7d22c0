"""The stage: hosts as namespaces, guests as namespaces behind veths, the daemon as a process, a controller on a unix socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.networkd.rack import Rack


@pytest.fixture
async def rack(tmp_path: Path) -> AsyncIterator[Rack]:
    stage = Rack(tmp_path)
    try:
        await stage.open()
        yield stage
    finally:
        await stage.close()
