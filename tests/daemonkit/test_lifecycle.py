"""Daemons as processes: the lock, what systemd is told, and how they end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemonkit.errors import ConfigError
from daemonkit.lifecycle import DataDirectory

DAEMON = """
import asyncio, sys
from pathlib import Path
from daemonkit import lifecycle, log
from daemonkit.errors import ConfigError

async def forgotten():
    try:
        await asyncio.sleep(1000)
    finally:
        print("cleaned", flush=True)

async def main(life):
    directory = lifecycle.DataDirectory(Path(sys.argv[1]))
    task = asyncio.create_task(forgotten())
    await asyncio.sleep(0)
    if sys.argv[2] == "bug":
        raise ValueError("a bug")
    if sys.argv[2] == "group":
        async with asyncio.TaskGroup() as group:
            group.create_task(wrong())
    life.ready("serving")
    print("ready", flush=True)
    await life.stopping.wait()

async def wrong():
    raise ConfigError("wrong key")

log.setup("testd")
sys.exit(lifecycle.run(main))
"""


@contextmanager
def daemon(directory: Path, how: str = "serve", **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(directory), how],
        env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_second_daemon_on_a_directory_refuses(tmp_path: Path) -> None:
    with daemon(tmp_path) as first:
        assert first.stdout is not None and first.stdout.readline() == "ready\n"
        with daemon(tmp_path) as second:
            _out, err = second.communicate(timeout=60)
            assert second.returncode == 1 and err == f"cannot start: {tmp_path} is in use by another process\n"
        first.kill()
        first.wait()
        DataDirectory(tmp_path).close()  # the lock went with its process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_in_order(tmp_path: Path, number: int) -> None:
    with daemon(tmp_path) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0 and out == "cleaned\n" and "Traceback" not in err


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, abstract: bool) -> None:
    name = f"skyrack-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name if abstract else name)
        sock.settimeout(60)
        address = "@" + name if abstract else name
        with daemon(tmp_path / "data", NOTIFY_SOCKET=address, WATCHDOG_USEC="300000") as process:
            assert sock.recv(100) == b"READY=1\nSTATUS=serving"
            assert [sock.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            process.terminate()
            while (told := sock.recv(100)) == b"WATCHDOG=1":
                continue
            assert told == b"STOPPING=1"
            assert process.wait(60) == 0


def test_errors_end_it_with_one(tmp_path: Path) -> None:
    with daemon(tmp_path / "bug", "bug") as process:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 1 and out == "cleaned\n"
        assert '"level": "critical"' in err and "ValueError: a bug" in err
    with daemon(tmp_path / "group", "group") as process:
        _out, err = process.communicate(timeout=60)
        assert process.returncode == 1 and err == "cannot start: wrong key\n"


def test_a_directory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        DataDirectory(tmp_path / "file")
