"""`skyrack version`."""

from __future__ import annotations

import importlib.metadata
import platform

import click

from skyrack.cli.output import Done, Output
from skyrack.cli.verb import verb

_group = click.Group()


@verb(_group, "version", logs_in=False, help="Which software this is.")
async def show() -> Output:
    found = {"skyrack": importlib.metadata.version("skyrack"), "grpcio": importlib.metadata.version("grpcio")}
    return Done(f"skyrack {found['skyrack']} (grpcio {found['grpcio']}, Python {platform.python_version()})", found)


version = _group.commands["version"]
