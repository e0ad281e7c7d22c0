"""The documentation is true: options, command lines, links, and nothing of the machine it was written on."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from skyrack.cli.main import root

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"```sh\n(.*?)```|((?:^    .*\S.*\n)+)", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:^|[;|(]|\bas )\s*skyrack (.*?)(?=$|[;|)<])")
PATH = re.compile(r"`((?:docs|tests|images|proto|bench|systemd|skyrack|daemonkit|controllerd)/[\w/.-]+\.\w+)`")
FOREIGN = re.compile(r"pypi|registry|artifactory|index-url|/work/|/root/|/home/|/tmp/|/usr/local/lib/python", re.IGNORECASE)

named = {"ids": lambda given: str(given.relative_to(ROOT)) if isinstance(given, Path) else given}


def lines(page: Path) -> Iterator[str]:
    """Command lines of the page's blocks, without comments; continued lines are one."""
    for block in BLOCK.finditer(page.read_text()):
        whole = (block[1] or block[2]).replace("\\\n", " ")
        yield from (re.sub(r"(^|\s)#.*", "", line).strip() for line in whole.splitlines())


def commands() -> list[tuple[Path, str]]:
    return [(page, found[1]) for page in PAGES for line in lines(page) for found in COMMAND.finditer(line.replace('"$(', "("))]


def mentions() -> list[tuple[Path, str]]:
    """`skyrack ...` in running text, mostly without arguments."""
    told = [(page, words) for page in PAGES for words in re.findall(r"`skyrack ([a-z][^`]*)`", page.read_text())]
    return [(page, re.split(r"[|\[]|\.\.\.", words)[0]) for page, words in told]


def parse(words: list[str], *, whole: bool = True) -> None:
    """As the command would, but for carrying it out. Errors: click.UsageError. Not `whole`: arguments may be missing."""
    command: click.Command = root
    context = click.Context(root, info_name="skyrack")
    while isinstance(command, click.Group):
        _options, rest, _order = command.make_parser(context).parse_args(words)
        if not rest:
            return
        name, found, words = command.resolve_command(context, rest)
        assert found is not None
        command, context = found, click.Context(found, info_name=name, parent=context)
    given, rest, _order = command.make_parser(context).parse_args(words)
    assert not rest or context.ignore_unknown_options, f"too many words: {rest}"
    for parameter in command.params if whole else ():
        parameter.process_value(context, given.get(parameter.name or "", parameter.get_default(context)))


def test_there_are_command_lines() -> None:
    assert len(commands()) > 60 and len(mentions()) > 10


@pytest.mark.parametrize(("page", "line"), commands(), **named)
def test_command_lines_parse(page: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click.Path, "convert", lambda _self, value, _parameter, _context: value)  # files of the reader's
    monkeypatch.setenv("SKYRACK_SANDBOX_DIR", str(tmp_path))
    parse(shlex.split(line))


@pytest.mark.parametrize(("page", "line"), mentions(), **named)
def test_mentioned_commands_exist(page: Path, line: str) -> None:
    parse(shlex.split(line), whole=False)


@pytest.mark.parametrize(
    "line", ["serve list", "server list --nope", "server create", "server show", "node token --name k --role x"]
)
def test_mistakes_are_seen(line: str) -> None:
    with pytest.raises(click.UsageError):
        parse(shlex.split(line))


def test_commands_of_dev() -> None:
    arms = set(re.findall(r"^([a-z|]+)\)", (ROOT / "dev").read_text(), re.MULTILINE))
    known = {word for arm in arms for word in arm.split("|")}
    told = {word for page in PAGES for word in re.findall(r"\./dev ([a-z]+)", page.read_text())}
    assert told and told <= known


@pytest.mark.parametrize("page", PAGES, **named)
def test_what_is_linked_exists(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    for path in PATH.findall(text):
        assert (ROOT / path).exists() or "NNNN" in path or "thing" in path, path


@pytest.mark.parametrize("page", PAGES, **named)
def test_nothing_of_this_machine(page: Path) -> None:
    found = FOREIGN.search(page.read_text())
    assert found is None, found


def test_every_option_is_told_as_the_daemons_say_it() -> None:
    made = runpy.run_path(str(ROOT / "docs/make_configuration.py"))
    assert made["PAGE"].read_text() == made["page"](), "run docs/make_configuration.py"


def test_units_start_what_the_installation_makes() -> None:
    install = (ROOT / "docs/install.md").read_text()
    for unit in (ROOT / "systemd").glob("*.service"):
        program = re.search(r"^ExecStart=(\S+)/(\S+) --config (\S+)$", unit.read_text(), re.MULTILINE)
        assert program and f"python3 -m venv {Path(program[1]).parent}\n" in install
        assert f"{program[2]} --print-config > {program[3]}" in install or program[2] == "skyrack-storaged"
    for directory in (ROOT / "systemd").glob("*.d"):
        home = "/etc/systemd/system" if ".service" in directory.name else "/etc"
        assert f"{home}/{directory.name} systemd/{directory.name}/*.conf" in install
