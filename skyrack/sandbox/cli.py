"""`skyrack sandbox ...`: the rack in a box from a shell."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec

import click
from rich.console import Console
from rich.table import Table

from daemonkit.errors import SkyrackError
from skyrack.sandbox import layout
from skyrack.sandbox.rack import Rack

P = ParamSpec("P")
ALONE_PATIENCE_S = 10.0
PLAIN_WIDTH = 120
NETWORK = click.Choice(list(layout.NETWORKS))


@click.group()
def sandbox() -> None:
    """A small rack inside this machine: hosts as namespaces, the real daemons in them."""


def _rack(_context: click.Context, _parameter: click.Parameter, name: str) -> Rack:
    try:
        return Rack(name)
    except SkyrackError as error:
        raise click.BadParameter(error.message) from None


named = click.option(
    "--name",
    "rack",
    default="rack",
    show_default=True,
    envvar="SKYRACK_SANDBOX",
    callback=_rack,
    help="Which sandbox; several can be up.",
)


def act(command: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs a coroutine as a command, as root; its errors in one line."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        if os.geteuid() != 0:
            raise click.ClickException("the sandbox makes namespaces: run it as root")
        try:
            asyncio.run(command(*args, **kwargs))
        except Exception as error:
            raise _explained(error) from None

    return run


def _explained(error: Exception) -> Exception:
    """The first of what went wrong, as one line; a bug of ours stays what it is."""
    from skyrack.client import CloudError  # takes a while to import

    first = error
    while isinstance(first, ExceptionGroup):
        first = first.exceptions[0]
    return click.ClickException(str(first)) if isinstance(first, SkyrackError | CloudError | OSError) else error


@sandbox.command()
@click.option("--controllers", default=1, show_default=True)
@click.option("--networks", default=1, show_default=True)
@click.option("--computes", default=2, show_default=True)
@click.option("--storages", default=1, show_default=True)
@named
@act
async def up(rack: Rack, **counts: int) -> None:
    """Brings the rack up. Finishes what an interrupted `up` began; prints what to export."""
    from skyrack.sandbox.up import bring_up  # gRPC takes a while to import: only here

    start_s = time.monotonic()
    env = await bring_up(rack, counts, lambda line: click.echo(f"{time.monotonic() - start_s:6.2f} s  {line}", err=True))
    _print_env(env)


@sandbox.command()
@named
@act
async def down(rack: Rack) -> None:
    """Clears everything away, also after a crash, also twice."""
    await rack.down()


@sandbox.command()
@click.option("--json", "as_json", is_flag=True)
@named
@act
async def status(rack: Rack, as_json: bool) -> None:
    """Hosts and their daemons. Also what these weigh, and what the cloud thinks of them."""
    seen = await rack.status()
    states = await _states(rack)
    for node in seen["nodes"]:
        node["state"] = states.get(node["name"], "")
    if as_json:
        click.echo(json.dumps(seen))
    else:
        _print_status(seen)


async def _states(rack: Rack) -> dict[str, str]:
    """Empty when the controller cannot be asked: status is for such times."""
    from skyrack.client import CloudError
    from skyrack.sandbox.cloud import controller_states, node_states
    from skyrack.sandbox.up import connect

    try:
        async with asyncio.timeout(3.0), connect(rack) as cloud:
            return await node_states(cloud) | await controller_states(cloud)
    except (SkyrackError, CloudError, OSError):
        return {}


def _print_status(seen: dict[str, Any]) -> None:
    table = Table("node", "state", "power", "address", "unit", "is", "pid", "restarts", "MiB")
    for node in seen["nodes"]:
        first = (node["name"], node["state"].lower(), node["power"], node["address"])
        table.add_row(*first, "", "", str(node["pid"] or ""), "", str(node["pss_mib"]))
        for unit in node["units"]:
            cells = (unit["name"], unit["state"], str(unit["pid"] or ""), str(unit["restarts"]), str(unit["pss_mib"]))
            table.add_row("", "", "", "", *cells)
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    console.print(table)
    console.print(
        f"API at {', '.join(seen['endpoints'])}; client on the internet at {seen['client']}; files in {seen['directory']}"
    )
    for node_name, network in seen["cut"]:
        console.print(f"cut: {node_name} from {network}")


@sandbox.command()
@named
@act
async def env(rack: Rack) -> None:
    """What to export so that `skyrack` finds the rack. Use: eval "$(skyrack sandbox env)" """
    from skyrack.sandbox.up import environment

    _print_env(environment(rack))


def _print_env(env: dict[str, str]) -> None:
    for name, value in env.items():
        click.echo(f"export {name}={shlex.quote(value)}")


@sandbox.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@named
def execute(rack: Rack, node: str, command: tuple[str, ...]) -> None:
    """Runs COMMAND in NODE. NODE `internet`: with the network of the client there."""
    try:
        argv = rack.enter(node, *(command[1:] if command[0] == "--" else command))
    except SkyrackError as error:
        raise click.ClickException(error.message) from None
    os.execvp(argv[0], argv)


@sandbox.command()
@click.argument("node")
@click.argument("unit", required=False)
@named
@act
async def kill(rack: Rack, node: str, unit: str | None) -> None:
    """A power failure of NODE. With UNIT: SIGKILL for that daemon alone, which is then started again."""
    await rack.kill(node, unit)


@sandbox.command()
@click.argument("node")
@click.argument("unit", required=False)
@named
@act
async def start(rack: Rack, node: str, unit: str | None) -> None:
    """Powers NODE on, or starts one UNIT of it."""
    host = rack.host(node)
    if unit:
        await host.start_unit(unit)
        return
    async with rack.alone(ALONE_PATIENCE_S):
        await rack.start(next(n for n in rack.nodes() if n.name == node))


@sandbox.command()
@click.argument("node")
@click.argument("unit", required=False)
@named
@act
async def stop(rack: Rack, node: str, unit: str | None) -> None:
    """Stops NODE in good order, or one UNIT of it. Waits for the end."""
    host = rack.host(node)
    for name in [unit] if unit else await host.status():
        await host.stop_unit(name)
    if unit is None:
        await host.power_off()


@sandbox.command()
@click.argument("node")
@click.argument("unit", required=False)
@named
@act
async def pause(rack: Rack, node: str, unit: str | None) -> None:
    """Lets NODE, or one UNIT of it, hang. Nothing ends, nothing answers."""
    await rack.pause(node, unit, True)


@sandbox.command()
@click.argument("node")
@click.argument("unit", required=False)
@named
@act
async def resume(rack: Rack, node: str, unit: str | None) -> None:
    """Ends a pause."""
    await rack.pause(node, unit, False)


@sandbox.command()
@click.argument("node")
@click.option("--network", type=NETWORK, help="Only this cable; without it all.")
@named
@act
async def cut(rack: Rack, node: str, network: str | None) -> None:
    """Pulls NODE's cables."""
    await rack.cut(node, network)


@sandbox.command()
@named
@act
async def heal(rack: Rack) -> None:
    """Plugs all cables in again."""
    await rack.fabric.heal()


@sandbox.command()
@click.argument("node")
@click.argument("unit")
@click.option("--lines", default=0, help="Only the last ones.")
@named
def logs(rack: Rack, node: str, unit: str, lines: int) -> None:
    """The output of UNIT on NODE."""
    try:
        text = rack.host(node).log(unit).read_text(errors="replace")
    except SkyrackError as error:
        raise click.ClickException(error.message) from None
    except OSError:
        raise click.ClickException(f"{unit} on {node} has written nothing") from None
    sys.stdout.writelines(text.splitlines(keepends=True)[-lines:])


@sandbox.command()
@named
def demo(rack: Rack) -> None:
    """Tells the story of the cloud on a rack that is up."""
    from skyrack.sandbox import demo as story

    sys.exit(story.main(rack))
