"""`skyrack sandbox ...`, where the sandbox is installed."""

from __future__ import annotations

import click

try:
    from skyrack.sandbox.cli import sandbox
except ModuleNotFoundError as error:
    if error.name not in ("skyrack.sandbox", "skyrack.sandbox.cli"):
        raise

    @click.command("sandbox", context_settings={"ignore_unknown_options": True}, add_help_option=False)
    @click.argument("words", nargs=-1, type=click.UNPROCESSED)
    def sandbox(words: tuple[str, ...]) -> None:
        """A small rack inside this machine."""
        raise click.ClickException("the sandbox is not part of this installation; install skyrack from its repository")


__all__ = ["sandbox"]
