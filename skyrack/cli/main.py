"""The root of the command: nouns found by name and imported when used, options that say which cloud and who."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

import click

from skyrack.cli.verb import Settings

# Noun -> module of skyrack.cli, its click group, and the line in --help.
NOUNS = {
    "cluster": ("cluster", "cluster", "The control plane: controllers, backups, what does not agree"),
    "console": ("server", "console", "Console logs of servers"),
    "event": ("event", "event", "The history: who did what, and what became of it"),
    "flavor": ("flavor", "flavor", "Named sizes of servers"),
    "floating": ("floating_ip", "floating", "Floating IPs: public addresses"),
    "image": ("image", "image", "Bootable templates"),
    "keypair": ("keypair", "keypair", "SSH keys put into servers"),
    "network": ("network", "network", "L2 segments"),
    "node": ("node", "node", "Machines of the cloud"),
    "port": ("port", "port", "Addresses on networks"),
    "project": ("project", "project", "Owners of resources"),
    "quota": ("quota", "quota", "What a project may hold"),
    "role": ("role", "role", "Users' rights in projects"),
    "router": ("router", "router", "Join subnets and lead out"),
    "sandbox": ("sandbox", "sandbox", "A small rack inside this machine"),
    "security": ("security_group", "security", "Security groups and their rules"),
    "server": ("server", "server", "Virtual machines"),
    "subnet": ("subnet", "subnet", "Address ranges on networks"),
    "task": ("task", "task", "Durable operations and how far they are"),
    "token": ("token", "token", "Logins"),
    "usage": ("usage", "usage", "What a project consumed"),
    "user": ("user", "user", "Who may log in"),
    "version": ("version", "version", "Which software this is"),
    "volume": ("volume", "volume", "Block devices that outlive servers"),
}


class Nouns(click.Group):
    """Imports a noun's file only when the noun is used. Dashes stand for spaces: "security-group-rule create"."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(NOUNS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in NOUNS:
            return None
        module, attribute, _line = NOUNS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"skyrack.cli.{module}"), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        words = args[0].split("-")
        if len(words) > 1 and words[0] in NOUNS:
            args = [*words, *args[1:]]
        if args[0] not in NOUNS and not args[0].startswith("-"):
            raise click.exceptions.NoSuchCommand(args[0], possibilities=NOUNS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Nouns"):
            formatter.write_dl([(noun, line) for noun, (_module, _attribute, line) in sorted(NOUNS.items())])


@click.group(cls=Nouns, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--endpoint", default="", help="host:port of the controllers, comma-separated.  [env: SKYRACK_ENDPOINT]")
@click.option("--ca", default="", help="The cloud's CA certificate.  [env: SKYRACK_CA]")
@click.option("--user", default="", help="Who logs in.  [env: SKYRACK_USER]")
@click.option("--project", default="", help="Project to work in, name or id.  [env: SKYRACK_PROJECT]")
@click.option(
    "--password-file", default="", help='First line is the password; "-" = stdin.  [else: SKYRACK_PASSWORD, or asked]'
)
@click.pass_context
def root(ctx: click.Context, /, **options: Any) -> None:
    """Drives a Skyrack cloud. Resources are given by name or id.

    Every command takes --json. SKYRACK_TOKEN logs in without a password.
    """
    ctx.obj = Settings(**options)


def main(args: Sequence[str] | None = None) -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong is told in one line of ours
    root.main(args=list(args) if args is not None else None, prog_name="skyrack")


if __name__ == "__main__":
    main()
