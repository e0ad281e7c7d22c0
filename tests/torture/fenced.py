"""controllerd as it is, but with a wall clock that a test can put wrong: TORTURE_CLOCK names a file with the seconds."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from controllerd.daemon import main
from daemonkit.runtime import SystemClock


def with_wrong_clock() -> None:
    path = Path(os.environ["TORTURE_CLOCK"])

    def wall_s(_clock: SystemClock) -> float:
        try:
            return time.time() + float(path.read_text() or 0)
        except (OSError, ValueError):
            return time.time()

    SystemClock.wall_s = wall_s  # type: ignore[method-assign]


if __name__ == "__main__":
    with_wrong_clock()
    sys.exit(main())
