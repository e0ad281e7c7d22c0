from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from daemonkit.command import Limits, run
from daemonkit.errors import CommandFailed, DeadlineExceeded


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def gone(path: Path) -> bool:
    """Whether the process whose pid is in `path` goes away; killing takes a moment."""
    pid = int(path.read_text())  # noqa: ASYNC240
    for _ in range(1000):
        if not alive(pid):
            return True
        await asyncio.sleep(0.02)
    return False


async def test_output_input_and_failure() -> None:
    assert await run("cat", stdin=b"text") == "text"
    assert await run("sh", "-c", "exit 0", stdin=b"x" * 1_000_000) == ""  # need not be read
    with pytest.raises(CommandFailed, match="sh ended with 3: why") as caught:
        await run("sh", "-c", "echo why >&2; exit 3")
    assert (caught.value.code, caught.value.stderr) == (3, "why\n")
    assert await run("sh", "-c", "echo out; exit 3", check=False) == "out\n"
    with pytest.raises(CommandFailed) as caught:
        await run("/no/such/program")
    assert caught.value.code == 127


async def test_a_timeout_kills_all_of_it(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! > {tmp_path}/inner; echo $$ > {tmp_path}/outer; wait"
    with pytest.raises(DeadlineExceeded, match="sh took longer than 1 s"):
        await run("sh", "-c", script, timeout_s=1)
    assert await gone(tmp_path / "inner") and await gone(tmp_path / "outer")
    with pytest.raises(DeadlineExceeded):  # the child has gone, its own child still holds the pipe
        await run("sh", "-c", f"sleep 1000 & echo $! > {tmp_path}/inner", timeout_s=1)
    assert await gone(tmp_path / "inner")


async def test_a_cancelled_call_leaves_no_child(tmp_path: Path) -> None:
    call = asyncio.create_task(
        run("sh", "-c", f"echo $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; sleep 1000")
    )
    while not (tmp_path / "pid").exists():  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await gone(tmp_path / "pid")


async def test_too_much_output_ends_it_and_later_timeouts_work() -> None:
    for stream in ("", ">&2"):
        with pytest.raises(CommandFailed, match="more than 100000 bytes"):
            await run("sh", "-c", f"yes {stream}", output_bytes_max=100_000)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(10)


async def test_limits_reach_the_child() -> None:
    assert (await run("sh", "-c", "ulimit -v; ulimit -t", limits=Limits(memory_bytes=1 << 30, cpu_s=7))).split() == [
        "1048576",
        "7",
    ]
    with pytest.raises(CommandFailed):
        await run("sh", "-c", "while :; do :; done", limits=Limits(cpu_s=1), timeout_s=60)
