"""Helper programs (qemu-img, dnsmasq, conntrack...): started in one place, bounded in time, memory and output.

Arguments are a list, never a shell line. Secrets do not go into argv (visible to everyone in /proc): give them by file
descriptor or file.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from daemonkit.errors import CommandFailed, DeadlineExceeded


@dataclass(frozen=True)
class Limits:
    """Of the child: address space in bytes and CPU time in seconds (prlimit). None = unlimited."""

    memory_bytes: int | None = None
    cpu_s: int | None = None

    def wrap(self, argv: Sequence[str]) -> list[str]:
        options = [f"--as={self.memory_bytes}"] if self.memory_bytes else []
        options += [f"--cpu={self.cpu_s}"] if self.cpu_s else []
        return ["prlimit", *options, "--", *argv] if options else list(argv)


UNLIMITED = Limits()


OUTPUT_BYTES_MAX = 16 << 20
_CHUNK_BYTES = 1 << 16
_KILL_TIMEOUT_S = 5.0


async def run(
    *argv: str,
    stdin: bytes | None = None,
    timeout_s: float = 30.0,
    limits: Limits = UNLIMITED,
    check: bool = True,
    output_bytes_max: int = OUTPUT_BYTES_MAX,
    pass_fds: Sequence[int] = (),
) -> str:
    """Runs to the end and gives its standard output. `pass_fds` stay open in the child under the same numbers.

    Errors: CommandFailed (exit code not 0, unless check is False; no such program: 127; more output than
    `output_bytes_max`, on either stream), DeadlineExceeded. Neither the child nor what it started (unless that made itself a
    daemon) outlives a call that fails.
    """
    process = await _start(argv, limits, stdin is not None, pass_fds)
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await _communicate(process, argv, stdin, output_bytes_max)
    except BaseException as error:
        await _kill(process)
        if isinstance(error, TimeoutError):
            raise DeadlineExceeded(f"{argv[0]} took longer than {timeout_s:g} s") from None
        raise
    if check and process.returncode != 0:
        raise CommandFailed(argv, process.returncode or 0, err.decode(errors="replace"))
    return out.decode(errors="replace")


async def _start(argv: Sequence[str], limits: Limits, has_stdin: bool, pass_fds: Sequence[int]) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *limits.wrap(argv),
            stdin=asyncio.subprocess.PIPE if has_stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except OSError as error:
        raise CommandFailed(argv, 127, str(error.strerror)) from None


async def _kill(process: asyncio.subprocess.Process) -> None:
    """The whole group. Its pipes are read to their end, because asyncio sees a process end only after them."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):  # something that left the group may hold a pipe for ever
        async with asyncio.timeout(_KILL_TIMEOUT_S):
            await process.communicate()


async def _communicate(
    process: asyncio.subprocess.Process, argv: Sequence[str], stdin: bytes | None, bytes_max: int
) -> tuple[bytes, bytes]:
    too_much = False

    async def read(stream: asyncio.StreamReader) -> bytes:
        nonlocal too_much
        chunks, size = [], 0
        while chunk := await stream.read(_CHUNK_BYTES):
            size += len(chunk)
            if size <= bytes_max:
                chunks.append(chunk)
            elif not too_much:
                too_much = True
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        return b"".join(chunks)

    async def feed() -> None:
        if process.stdin is not None:
            with suppress(BrokenPipeError, ConnectionResetError):  # it need not read all we give
                process.stdin.write(stdin or b"")
                await process.stdin.drain()
            process.stdin.close()

    assert process.stdout is not None and process.stderr is not None
    # No task group, whose failure would be left counted as a cancellation of our caller (Python 3.11).
    _, out, err = await asyncio.gather(feed(), read(process.stdout), read(process.stderr))
    await process.wait()
    if too_much:
        raise CommandFailed(argv, -signal.SIGKILL, f"more than {bytes_max} bytes of output")
    return out, err
