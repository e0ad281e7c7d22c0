"""Clock, randomness, ids, transport and executors are handed in: the whole cloud runs in one process under one seed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from daemonkit.runtime import SystemClock, ThreadPool
from tests.simulation.story import Outcome, run
from tests.simulation.tripwire import tripwire

REPOSITORY = Path(__file__).resolve().parents[2]
SEEDS = (1, 2, 3, 4, 5)
HANG_S = 120.0


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Outcome]:
    return cache(lambda seed: run(tmp_path_factory.mktemp(f"seed-{seed}"), seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_day_ends_well(outcome: Callable[[int], Outcome], seed: int) -> None:
    """What must hold is asserted by the story itself, where it must hold."""
    assert outcome(seed).history[-1].kind == "floating_ip.delete"


def test_the_controller_was_killed_in_the_middle(outcome: Callable[[int], Outcome]) -> None:
    assert "BUILD" in {outcome(seed).killed_in for seed in SEEDS}


def test_the_same_seed_is_the_same_history(outcome: Callable[[int], Outcome], tmp_path: Path) -> None:
    """Ids, kinds, words and times, to the microsecond."""
    again = run(tmp_path, SEEDS[0])
    assert again.history == outcome(SEEDS[0]).history
    assert again.calls == outcome(SEEDS[0]).calls


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_another_process_makes_no_difference(outcome: Callable[[int], Outcome], hash_seed: str) -> None:
    """There sets of strings have another order, and objects other addresses."""
    seed, environment = SEEDS[1], os.environ | {"PYTHONHASHSEED": hash_seed}
    told = subprocess.run(
        [sys.executable, "-m", "tests.simulation.story", str(seed)],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=HANG_S, check=True,
    )  # fmt: skip
    assert told.stdout.strip() == outcome(seed).digest()


def test_another_seed_is_another_interleaving(outcome: Callable[[int], Outcome]) -> None:
    assert len({tuple(outcome(seed).shape()) for seed in SEEDS}) == len(SEEDS)
    assert len({tuple(line.at_s for line in outcome(seed).history) for seed in SEEDS}) == len(SEEDS)


def test_nobody_goes_past_the_runtime(tmp_path: Path) -> None:
    with tripwire() as touched:
        run(tmp_path, SEEDS[0])
    assert not touched


async def test_the_tripwire_trips() -> None:
    with tripwire() as touched:
        SystemClock().wall_s()
        threads = ThreadPool("one", 1)
        await threads.run(int)
        threads.close()
    assert {"daemonkit.runtime: time", "daemonkit.runtime: run_in_executor"} <= set(touched)
