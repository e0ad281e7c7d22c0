"""Controllers are upgraded and rolled back one after the other, by `tests.torture.rolling`, and nobody's call fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
HANG_S = 280


def test_upgraded_and_rolled_back_without_a_failed_call() -> None:
    argv = [sys.executable, "-m", "tests.torture.rolling", "--seed", "7"]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr
    assert " 0 failed, 0 lost, 0 doubled, 0 reordered, 0 diverged" in done.stderr
