"""A short torture of the real thing, and the proof that it would notice. For longer ones: `./dev torture --minutes N`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
HANG_S = 280
FAULTS = ("killed", "stopped", "quorum_lost", "unheard")


def torture(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "tests.torture.run", "--seed", "7", *words]
    return subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=HANG_S, check=False)


def test_nothing_acknowledged_is_lost() -> None:
    done = torture("--rounds", str(len(FAULTS)), "--faults", ",".join(FAULTS))
    assert done.returncode == 0, done.stderr
    assert f"{len(FAULTS)} rounds" in done.stderr and "0 lost, 0 doubled, 0 reordered, 0 diverged" in done.stderr


def test_without_fences_the_checker_finds_it() -> None:
    """The negative control."""
    done = torture("--rounds", "1", "--faults", "stopped", "--unfenced")
    assert done.returncode == 1 and ("lost: " in done.stderr or "diverged: " in done.stderr), done.stderr
