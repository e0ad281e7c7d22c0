"""The launcher dies at any step of `up` or `down`: another `down` clears everything, another `up` finishes."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from skyrack.sandbox.rack import Rack
from tests.sandbox import stand_in
from tests.sandbox.leftover import traces
from tests.sandbox.test_rack import COUNTS, ask

# Every effect of the launcher on the machine goes through a program that it starts: it dies right after starting the n-th.
LAUNCHER = """
import asyncio, os, sys
from pathlib import Path
from skyrack.sandbox.rack import Rack
from tests.sandbox import stand_in
name, directory, action, die_after = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
start, started = asyncio.create_subprocess_exec, 0
async def counted(*args, **kwargs):
    global started
    process = await start(*args, **kwargs)
    started += 1
    if started == die_after:
        os._exit(9)
    return process
asyncio.create_subprocess_exec = counted
rack = Rack(name, directory, units=stand_in.units)
async def up():
    async with rack.alone():
        await rack.power_on({counts})
asyncio.run(up() if action == "up" else rack.down())
print(started)
"""


def launch(rack: Rack, action: str, die_after: int) -> subprocess.CompletedProcess[str]:
    argv = [
        sys.executable,
        "-c",
        LAUNCHER.replace("{counts}", repr(COUNTS)),
        rack.name,
        str(rack.directory),
        action,
        str(die_after),
    ]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])


@pytest.fixture
def rack(base: Path) -> Rack:
    name = f"t{uuid.uuid4().hex[:8]}"
    return Rack(name, base / name, units=stand_in.units)


@pytest.mark.parametrize("die_after", [1, 2, 4, 7, 11, 16, 22, 25, 28, 30])
async def test_crash_of_up(rack: Rack, die_after: int) -> None:
    try:
        died = launch(rack, "up", die_after)
        assert died.returncode == 9, died
    finally:
        await rack.down()
    assert traces(rack.prefix, rack.directory) == {}


async def test_up_after_crash_finishes(rack: Rack) -> None:
    try:
        for die_after in (5, 12, 3, 9):
            async with rack.alone(patience_s=20):
                pass  # what the last one started has ended
            assert launch(rack, "up", die_after).returncode == 9
        async with rack.alone(patience_s=20):
            pass
        whole = launch(rack, "up", 0)
        assert whole.returncode == 0, whole.stderr
        await rack.host("c1").until("echo")
        assert await ask(rack) == b"echo hello"
        for node in rack.nodes():
            assert "0% packet loss" in await rack.host(node.name).execute("ping", "-c1", "-W1", "10.10.0.11")
    finally:
        await rack.down()
    assert traces(rack.prefix, rack.directory) == {}


@pytest.mark.parametrize("die_after", [1, 3, 6])
async def test_crash_of_down(rack: Rack, die_after: int) -> None:
    try:
        whole = launch(rack, "up", 0)
        assert whole.returncode == 0, whole.stderr
        assert int(whole.stdout) > 30, "the crash points of `up` no longer cover it"
        assert launch(rack, "down", die_after).returncode == 9
    finally:
        await rack.down()
    assert traces(rack.prefix, rack.directory) == {}
