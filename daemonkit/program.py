"""The outer skin that every agent has: command line, configuration, data directory, own gRPC, metrics, an orderly end."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol, TypeVar

from daemonkit import config, lifecycle, log, metrics
from daemonkit.errors import ConfigError
from daemonkit.rpc import Server
from daemonkit.tls import TlsFiles

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Settings(Protocol):
    """What the configuration of every agent has."""

    @property
    def node(self) -> str: ...
    @property
    def data_dir(self) -> Path: ...
    @property
    def tls_dir(self) -> Path: ...
    @property
    def listen(self) -> str: ...
    @property
    def metrics_listen(self) -> str: ...
    @property
    def log_level(self) -> str: ...

    def for_daemon(self) -> None:
        """Checks what only a real daemon needs. Errors: ConfigError."""


S = TypeVar("S", bound=Settings)


def main(daemon: str, about: str, settings_class: type[S], serve: Callable[[S, lifecycle.Lifecycle], Awaitable[None]]) -> int:
    """`skyrack-<daemon> --config FILE | --print-config`. Gives the exit code.

    Files are made for nobody else (umask 077); what another user must reach is opened one by one.
    """
    parser = argparse.ArgumentParser(prog=f"skyrack-{daemon}", description=about)
    parser.add_argument("--config", type=Path, default=Path(f"/etc/skyrack/{daemon}.toml"))
    parser.add_argument("--print-config", action="store_true", help="print every option with its default, and end")
    arguments = parser.parse_args()
    if arguments.print_config:
        print(config.describe(settings_class), end="")
        return 0
    os.umask(0o077)
    try:
        settings = config.load(settings_class, arguments.config)
        settings.for_daemon()
        log.setup(daemon, settings.log_level)
        data = lifecycle.DataDirectory(settings.data_dir)
    except ConfigError as error:
        print(f"cannot start: {error.message}", file=sys.stderr)
        return 1
    try:
        return lifecycle.run(lambda life: serve(settings, life))
    finally:
        data.close()


def own_tls(settings: Settings) -> TlsFiles:
    """The node's certificate files. Errors: ConfigError when they are another node's."""
    tls = TlsFiles(settings.tls_dir)
    if tls.identity().node != settings.node:
        raise ConfigError(f"node is {settings.node!r}, but the certificate is of {tls.identity().node!r}")
    return tls


async def listen(
    stack: AsyncExitStack, daemon: str, version: str, settings: Settings, tls: TlsFiles, server: Server, services: Sequence[str]
) -> None:
    """Own gRPC with mutual TLS (health, reflection, `services`) and metrics, until the stack unwinds. Errors: ConfigError."""
    server.bind(settings.listen, tls.server(clients_must_show_certificate=True))
    await server.start(services)
    stack.push_async_callback(server.stop)
    if settings.metrics_listen:
        metrics.INFO.labels(daemon, version).set(1)
        stack.callback(metrics.serve(settings.metrics_listen).shutdown)


async def until_stopped(
    life: lifecycle.Lifecycle, ready: Callable[[], Awaitable[str]], *jobs: Coroutine[Any, Any, None]
) -> None:
    """Runs `jobs` (and the watch on the loop's lag) until told to stop; `ready` gives the status to tell when it serves."""
    async with asyncio.TaskGroup() as group:
        work = [group.create_task(job) for job in (*jobs, metrics.watch_loop_lag())]
        life.ready(await ready())
        await life.stopping.wait()
        for task in work:
            task.cancel()


async def serving() -> str:
    return "serving"


def boot_id() -> str:
    """Changes when the machine starts anew."""
    return BOOT_ID.read_text().strip()
