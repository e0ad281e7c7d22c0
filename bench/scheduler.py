"""How long the scheduler thinks: one placement among 100, 1,000 and 10,000 nodes, and one refusal. CPU time, one process."""

from __future__ import annotations

import random
import time
from contextlib import suppress

from controllerd.domain.placement import Candidate, Ratios, Request
from controllerd.scheduler.placement import place
from daemonkit.errors import NoValidHost
from stage import median, percentile, show

ROUNDS = 300
IMAGE = "a" * 64
REQUESTS = {"fits": Request(2, 4096, 20, IMAGE), "refused": Request(2, 1 << 30, 20, IMAGE)}


def rack(nodes: int) -> list[Candidate]:
    """Half full nodes of 64 threads and 256 GiB; every third has the image, every fiftieth is away."""
    rng = random.Random(nodes)
    return [
        Candidate(
            f"id-{n}", f"k{n}", compute=True, enabled=True, in_session=n % 50 != 0, lost=False, vcpus=64, memory_mib=262144,
            disk_gib=4000, vcpus_claimed=rng.randint(0, 256), memory_mib_claimed=rng.randint(0, 262144),
            disk_gib_claimed=rng.randint(0, 4000), servers=rng.randint(0, 60), images=frozenset({IMAGE} if n % 3 == 0 else ()),
        )
        for n in range(nodes)
    ]  # fmt: skip


def measure(candidates: list[Candidate], request: Request) -> list[float]:
    """Milliseconds of each round."""
    times = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        with suppress(NoValidHost):
            place(candidates, request, Ratios())
        times.append((time.thread_time() - began) * 1000)
    return times


def main() -> None:
    rows: list[tuple[object, ...]] = []
    result: dict[str, float] = {}
    for nodes in (100, 1_000, 10_000):
        candidates = rack(nodes)
        for name, request in REQUESTS.items():
            times = measure(candidates, request)
            rows.append((nodes, name, f"{median(times):.3f}", f"{percentile(times, 99):.3f}"))
            result[f"{name}_{nodes}_ms_p99"] = round(percentile(times, 99), 3)
    show("scheduler", ("nodes", "request", "p50 ms", "p99 ms"), rows, result)


if __name__ == "__main__":
    main()
