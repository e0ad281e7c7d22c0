"""The command, as typed: on a rack with stand-ins for the daemons."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import pytest

from tests.sandbox.conftest import RackMaker
from tests.sandbox.leftover import traces
from tests.sandbox.test_rack import COUNTS


class Typed:
    """Runs `skyrack sandbox VERB --name ...`; gives (exit code, standard output, standard error)."""

    def __init__(self, name: str, base: str) -> None:
        self.name, self.base = name, base

    async def __call__(self, verb: str, *words: str) -> tuple[int | None, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "skyrack.sandbox", verb, "--name", self.name, *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "SKYRACK_SANDBOX_DIR": self.base},
        )
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()


async def test_verbs(make_rack: RackMaker) -> None:
    rack = make_rack()
    typed = Typed(rack.name, str(rack.directory.parent))
    await rack.power_on(COUNTS)
    assert await typed("exec", "k1", "--", "hostname") == (0, "k1\n", "")
    assert await typed("exec", "k1", "sh", "-c", "exit 7") == (7, "", "")
    code, out, _ = await typed("exec", "internet", "--", "ip", "-br", "-4", "address")
    assert code == 0 and "203.0.113.254/24" in out
    await rack.host("c1").execute("sh", "-c", "echo one >> /var/log/skyrack/echo.log; echo two >> /var/log/skyrack/echo.log")
    assert await typed("logs", "c1", "echo", "--lines", "1") == (0, "two\n", "")
    assert (await typed("cut", "k1", "--network", "traffic"))[0] == 0
    assert (await typed("kill", "s1"))[0] == 0
    assert (await typed("pause", "n1"))[0] == 0
    code, out, _ = await typed("status", "--json")
    seen = json.loads(out)
    assert {n["name"]: n["power"] for n in seen["nodes"]} == {"c1": "on", "n1": "hung", "s1": "off", "k1": "on"}
    assert seen["cut"] == [["k1", "traffic"]]
    code, out, _ = await typed("status")
    assert code == 0 and "hung" in out and "cut: k1 from traffic" in out
    assert [
        (await typed(*words))[0] for words in (("resume", "n1"), ("heal",), ("stop", "c1", "echo"), ("start", "c1", "echo"))
    ] == [0] * 4
    assert (await typed("stop", "k1"))[0] == 0
    assert rack.host("k1").pid() is None
    assert (await typed("down")) == (0, "", "")
    assert traces(rack.prefix, rack.directory) == {}
    assert (await typed("down")) == (0, "", "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("status",), "Error: no sandbox 'none'; bring one up with: skyrack sandbox up\n"),
        (("exec", "k1", "true"), "Error: no sandbox 'none'; bring one up with: skyrack sandbox up\n"),
        (("kill", "k1", "computed"), "Error: no sandbox 'none'; bring one up with: skyrack sandbox up\n"),
        (("env",), "Error: no sandbox 'none'; bring one up with: skyrack sandbox up\n"),
        (("up", "--computes", "999"), "Error: computes: 0 to 200 are possible, not 999\n"),
    ],
)
async def test_errors_are_one_line(words: tuple[str, ...], told: str, tmp_path: object) -> None:
    assert await Typed("none", str(tmp_path))(*words) == (1, "", told)
