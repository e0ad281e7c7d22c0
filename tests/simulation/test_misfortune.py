"""A random life of the cloud under many seeds; what must hold is in `invariant`, and looked at all the time."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controllerd.leadership.replicated_log import ReplicatedLog
from tests.simulation.run import run
from tests.simulation.sweep import report, results
from tests.simulation.unfenced import BlindLog, UnfencedLog, first_failure

REPOSITORY = Path(__file__).resolve().parents[2]
SEEDS = range(200)
SEED = 1
CONTROL_SEEDS = range(20)
HANG_S = 900.0


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What daemons say while they are tormented fills memory and helps nobody."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(HANG_S)
def test_whatever_happens() -> None:
    with results(SEEDS, brief=True) as coming:
        failed = [result for result in coming if result.failure]
    assert not failed, "\n\n".join(report(result) for result in failed)


def test_a_failure_can_be_replayed_in_another_process(tmp_path: Path) -> None:
    """There sets of strings have another order, and objects other addresses."""
    here = run(SEED, tmp_path, brief=True)
    command = [sys.executable, "-m", "tests.simulation.run", str(SEED), "--brief"]
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    there = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=HANG_S, check=True)
    assert there.stdout.split()[0] == here.digest()


@pytest.mark.parametrize("log", [UnfencedLog, BlindLog])
def test_without_fences_it_is_noticed(log: type[ReplicatedLog]) -> None:
    result = first_failure(log, CONTROL_SEEDS)
    assert result is not None
    assert report(result).endswith(f"./dev sim --seeds 1 --first-seed {result.seed}")
