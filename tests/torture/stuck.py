"""controllerd whose work does not end when it must, and which does not wait for it as long as it would."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

from controllerd.controller import Controller
from controllerd.daemon import main
from controllerd.leadership import elector


async def never(_controller: Controller) -> None:
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


if __name__ == "__main__":
    elector.WIND_DOWN_MAX_S, elector.STUCK_TTLS = 0.5, 1
    Controller.close = never  # type: ignore[method-assign]
    sys.exit(main())
