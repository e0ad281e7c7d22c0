"""What an idle rack costs: memory (PSS) and processor time of each daemon, over QUIET_S seconds without work.

    ./dev bench footprint [--json]      {daemons: {NAME: {pss_mib, cpu_pct}}, total_pss_mib}

Of daemons that run on several nodes the costliest counts; the total is of all.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from daemonkit.command import run
from skyrack.sandbox.rack import Rack
from stage import rack, show

SETTLE_S, QUIET_S = 10.0, 30.0
DAEMONS = ("controllerd", "networkd", "computed", "storaged")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


async def measure(stage: Rack) -> dict[tuple[str, str], dict[str, float]]:
    """(node, daemon) -> {pss_mib, cpu_pct}."""
    await asyncio.sleep(SETTLE_S)
    before, start_s = await _cpu_s(stage), time.monotonic()
    await asyncio.sleep(QUIET_S)
    after, elapsed_s = await _cpu_s(stage), time.monotonic() - start_s
    pss = {key: unit["pss_mib"] for key, unit in (await _units(stage)).items()}
    return {key: {"pss_mib": pss[key], "cpu_pct": 100 * (after[key] - before[key]) / elapsed_s} for key in after}


async def _units(stage: Rack) -> dict[tuple[str, str], dict[str, Any]]:
    seen = await stage.status()
    return {(n["name"], u["name"]): u for n in seen["nodes"] for u in n["units"] if u["name"] in DAEMONS}


async def _cpu_s(stage: Rack) -> dict[tuple[str, str], float]:
    """Seconds of processor time each daemon has used so far."""
    used = {}
    for (node, daemon), unit in (await _units(stage)).items():
        stat = await run(*stage.enter(node, "cat", f"/proc/{unit['pid']}/stat"))
        user, system = stat.rpartition(")")[2].split()[11:13]
        used[node, daemon] = (int(user) + int(system)) / TICKS_PER_S
    return used


async def main() -> None:
    async with rack("benchidle") as stage:
        measured = await measure(stage)
    daemons = {
        daemon: {
            what: round(max(m[what] for (_, d), m in measured.items() if d == daemon), 2) for what in ("pss_mib", "cpu_pct")
        }
        for daemon in DAEMONS
    }
    total = round(sum(m["pss_mib"] for m in measured.values()), 1)
    rows = [(node, daemon, m["pss_mib"], round(m["cpu_pct"], 2)) for (node, daemon), m in sorted(measured.items())]
    result = {"daemons": daemons, "total_pss_mib": total}
    show(f"idle for {QUIET_S:.0f} s", ("node", "daemon", "PSS MiB", "% of a core"), [*rows, ("", "all", total, "")], result)


if __name__ == "__main__":
    asyncio.run(main())
