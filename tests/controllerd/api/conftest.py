from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemonkit.runtime import Runtime
from tests.controllerd.api.rig import Api, furnish, no_quotas, public_api


@pytest.fixture
async def api(tmp_path: Path, runtime: Runtime) -> AsyncIterator[Api]:
    async with public_api(tmp_path, runtime) as found:
        await no_quotas(found, "operators", "alpha", "beta")
        await furnish(found)
        yield found
