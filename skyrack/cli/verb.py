"""A verb: an asynchronous function of a `Cloud` and its options, made into a command with output options and exit codes.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage or missing settings, 3 no controller can be reached.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from skyrack.cli.output import Output, one_line, render

if TYPE_CHECKING:
    from skyrack.client import Cloud, CloudError

FAILED, USAGE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130

Body = Callable[..., Coroutine[Any, Any, Output | None]]

every_project = click.option("--all-projects", is_flag=True, help="Of all projects (admins).")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The options before the noun; "" = from the environment."""

    endpoint: str = ""
    ca: str = ""
    user: str = ""
    project: str = ""
    password_file: str = ""

    def cloud(self) -> Cloud:
        """Errors: Misconfigured, click.UsageError."""
        from skyrack.client import Cloud

        return Cloud.connect(
            [part.strip() for part in self.endpoint.split(",") if part.strip()],
            ca=self.ca,
            user=self.user,
            password=self.password(),
            project=self.project,
        )

    def password(self) -> str:
        """From --password-file, or asked for without echo; "" where the environment or a token says enough."""
        if self.password_file:
            return read_password(self.password_file)
        user = self.user or os.environ.get("SKYRACK_USER", "")
        has_token = bool(os.environ.get("SKYRACK_TOKEN")) and not self.user
        if not user or has_token or os.environ.get("SKYRACK_PASSWORD"):
            return ""
        if not sys.stdin.isatty():
            raise click.UsageError(f"no password for {user}: set SKYRACK_PASSWORD or give --password-file")
        return str(click.prompt(f"Password of {user}", hide_input=True, err=True))


def read_password(path: str) -> str:
    """The first line of a file; "-" = standard input."""
    try:
        whole = sys.stdin.readline() if path == "-" else Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"cannot read the password from {path}: {error}") from None
    return whole.partition("\n")[0]


def verb(group: click.Group, name: str, *, logs_in: bool = True, **attributes: Any) -> Callable[[Body], Body]:
    """Makes `body(cloud, **options)` the command `name` of `group`; what it gives is shown as --json, -f and -c ask.

    `logs_in` False: the body gets no cloud and finds its own way.
    """

    def register(body: Body) -> Body:
        command = group.command(name, **attributes)(_with_output(body, logs_in))
        command.params.extend(_output_options())
        return body

    return register


def _output_options() -> list[click.Parameter]:
    return [
        click.Option(["--json", "as_json"], is_flag=True, help="One JSON document, for programs."),
        click.Option(
            ["-f", "--format", "form"],
            type=click.Choice(["table", "value", "json"]),
            default="table",
            help="value: bare, for scripts.",
        ),
        click.Option(["-c", "--column", "columns"], multiple=True, help="Only this column or field; may be repeated."),
    ]


def _with_output(body: Body, logs_in: bool) -> Callable[..., None]:
    @functools.wraps(body)
    def run(*, as_json: bool, form: str, columns: tuple[str, ...], **options: Any) -> None:
        settings: Settings = click.get_current_context().find_object(Settings) or Settings()
        form = "json" if as_json else form
        output = answer(settings if logs_in else None, functools.partial(body, **options))
        if output is None:
            return
        try:
            shown = render(output, form, columns, terminal=sys.stdout.isatty())
        except KeyError as error:
            raise click.UsageError(str(error.args[0])) from None
        if shown:
            click.echo(shown)

    return run


def answer(settings: Settings | None, body: Body) -> Output | None:
    """Carries `body` out on the cloud of `settings`, if any. What goes wrong ends the program: one line and an exit code."""
    from skyrack.client import CloudError

    try:
        return asyncio.run(_with_cloud(settings, body) if settings else body())
    except CloudError as error:
        fail(error_line(error), exit_code(error))
    except OSError as error:
        fail(f"{error.filename or 'i/o'}: {error.strerror or error}", FAILED)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)


async def _with_cloud(settings: Settings, body: Body) -> Output | None:
    async with settings.cloud() as cloud:
        return await body(cloud)


def fail(line: str, code: int) -> NoReturn:
    """Ends the program. Server-provided text in `line` is cleaned here."""
    click.echo(f"error: {one_line(line)}", err=True)
    raise SystemExit(code)


def error_line(error: CloudError) -> str:
    """The error and what to do next, on one line."""
    message, advice = error.message.rstrip("."), error.advice
    return f"{message}. {advice[0].upper()}{advice[1:]}" if advice else message


def exit_code(error: CloudError) -> int:
    return {"MISCONFIGURED": USAGE, "UNREACHABLE": UNREACHABLE, "NOT_LEADER": UNREACHABLE}.get(error.reason, FAILED)
