"""Helper programs (qemu-img, dnsmasq, conntrack...): started in one place, bounded in time, memory and output.

Arguments are a list, never a shell line. Secrets do not go into argv (visible to everyone in /proc): give them by file
descriptor or file.
"""

from __future__ import annotations

import asyncio
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


async def run(
    *argv: str, stdin: bytes | None = None, timeout_s: float = 30.0, limits: Limits = UNLIMITED, check: bool = True
) -> str:
    """Runs to the end and gives its standard output.

    Errors: CommandFailed (exit code not 0, unless check is False), DeadlineExceeded. The child never outlives the call.
    """
    process = await asyncio.create_subprocess_exec(
        *limits.wrap(argv),
        stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(stdin)
    except TimeoutError:
        raise DeadlineExceeded(f"{argv[0]} took longer than {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if check and process.returncode != 0:
        raise CommandFailed(argv, process.returncode or 0, err.decode(errors="replace"))
    return out.decode(errors="replace")
