from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemonkit.runtime import Runtime, system_runtime
from tests.controllerd.front.rig import Rack, rack


@pytest.fixture
def runtime() -> Runtime:
    return system_runtime()


@pytest.fixture
async def pair(tmp_path: Path, runtime: Runtime) -> AsyncIterator[Rack]:
    """Two controllers, the first leads."""
    async with rack(tmp_path, runtime, "c1", "c2") as made:
        await made.elect("c1")
        yield made
