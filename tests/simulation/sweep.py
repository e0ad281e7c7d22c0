"""Many seeds, on all cores, each in a process of its own kind of luck.

    python -m tests.simulation.sweep --seeds N [--first-seed S] [--brief] [--workers W]

Ends with 1 when one failed, and tells how to see it again.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.simulation.run import TAIL, Result, run, scratch

SEEDS_A_PROCESS = 25  # then a fresh one: what a run leaves in memory does not pile up


def one(directory: Path, brief: bool, seed: int) -> Result:
    """In a worker."""
    logging.disable(logging.CRITICAL)
    return run(seed, directory, brief=brief)


@contextmanager
def results(seeds: Sequence[int], workers: int = 0, *, brief: bool = False) -> Iterator[Iterator[Result]]:
    """As they come. Worker processes, and what they wrote, are gone at the end. `workers`: 0 = one a core."""
    spawn = multiprocessing.get_context("spawn")
    with scratch() as directory, spawn.Pool(workers or os.cpu_count() or 1, maxtasksperchild=SEEDS_A_PROCESS) as pool:
        yield pool.imap_unordered(partial(one, directory, brief), seeds)


def report(result: Result) -> str:
    lines = [*result.history[-TAIL:], result.failure.rstrip()]
    again = f"./dev sim --seeds 1 --first-seed {result.seed}" + (" --brief" if result.brief else "")
    return "\n".join([*lines, f"seed {result.seed} failed; again: {again}"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev sim", description="Simulates a whole cloud with misfortune, once a seed.")
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--brief", action="store_true", help="as in the test-suite: less misfortune a seed")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 = one a core")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that workers and files go too
    began_s, done, failed = time.monotonic(), 0, []
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.seeds)
    with results(seeds, chosen.workers, brief=chosen.brief) as coming:
        for result in coming:
            done += 1
            if result.failure:
                failed.append(result.seed)
                print(f"\n{report(result)}\n", flush=True)
            rate = done / (time.monotonic() - began_s)
            print(f"\r{done} of {chosen.seeds} seeds, {len(failed)} failed, {rate:.2f} a second ", end="", file=sys.stderr)
    print(file=sys.stderr)
    if failed:
        print(f"failed: {' '.join(map(str, sorted(failed)))}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
