"""A sandbox that is up, driven the way a person would: by the `skyrack sandbox` command and by nsenter.

rack.env                                  SKYRACK_* for the SDK or for a child's environment
rack.exec("internet", "curl", "-sf", ...) standard output of a command in a node or at the client on the internet
rack.skyrack("server", "list", "--json")  standard output of the CLI, as the admin
rack.kill("k1"), rack.kill("k1", "computed"), rack.start(...), stop, pause, resume, cut("k1", "traffic"), heal()
rack.status(), rack.unit("k1", "computed"), rack.log("c1", "controllerd")
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from skyrack.sandbox.rack import Rack

UP_LIMIT_S = 240
CALL_LIMIT_S = 60


class RunningRack:
    """`base`: directory of its sandboxes (SKYRACK_SANDBOX_DIR)."""

    def __init__(self, name: str, base: str) -> None:
        self.name = name
        self.base = base
        self.env: dict[str, str] = {}

    @property
    def directory(self) -> Path:
        return Path(self.base) / self.name

    def up(self, **counts: int) -> None:
        """`controllers`, `networks`, `computes`, `storages`. Errors: CalledProcessError, with the story on standard error."""
        options = [word for kind, count in counts.items() for word in (f"--{kind}", str(count))]
        self.env = _exports(self.sandbox("up", *options, limit_s=UP_LIMIT_S))

    def adopt(self) -> None:
        """Takes a rack that somebody else keeps up."""
        self.env = _exports(self.sandbox("env"))

    def down(self) -> None:
        self.sandbox("down")

    def sandbox(self, verb: str, *words: str, limit_s: float = CALL_LIMIT_S) -> str:
        environment = {**os.environ, "SKYRACK_SANDBOX_DIR": self.base}
        argv = [sys.executable, "-m", "skyrack.sandbox", verb, "--name", self.name, *words]
        return _run(argv, environment, limit_s)

    def exec(self, node: str, *command: str, timeout_s: float = CALL_LIMIT_S, check: bool = True) -> str:
        """What `skyrack sandbox exec` would do, without the half second that starting it takes."""
        argv = self.enter(node, *command)
        if check:
            return _run(argv, dict(os.environ), timeout_s)
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL).stdout

    def enter(self, node: str, *command: str) -> list[str]:
        """argv that runs a command in a node."""
        return Rack(self.name, self.directory).enter(node, *command)

    def skyrack(self, *words: str, timeout_s: float = CALL_LIMIT_S, **env: str) -> str:
        """The CLI as the admin; `env` overrides, say SKYRACK_USER."""
        return _run([str(Path(sys.prefix) / "bin/skyrack"), *words], {**os.environ, **self.env, **env}, timeout_s)

    def kill(self, node: str, unit: str = "") -> None:
        """At once, without the half second that starting `skyrack sandbox kill` takes: tests kill at chosen moments."""
        asyncio.run(Rack(self.name, self.directory).kill(node, unit or None))

    def start(self, node: str, unit: str = "") -> None:
        self.sandbox("start", node, *filter(None, [unit]))

    def stop(self, node: str, unit: str = "") -> None:
        self.sandbox("stop", node, *filter(None, [unit]))

    def pause(self, node: str, unit: str = "") -> None:
        self.sandbox("pause", node, *filter(None, [unit]))

    def resume(self, node: str, unit: str = "") -> None:
        self.sandbox("resume", node, *filter(None, [unit]))

    def cut(self, node: str, network: str = "") -> None:
        self.sandbox("cut", node, *(["--network", network] if network else []))

    def heal(self) -> None:
        self.sandbox("heal")

    def status(self) -> dict[str, Any]:
        seen: dict[str, Any] = json.loads(self.sandbox("status", "--json"))
        return seen

    def unit(self, node: str, unit: str) -> dict[str, Any]:
        """{name, state, pid, restarts, exit, ...}, asked of the node's process 1 at once: tests look often."""
        return vars(asyncio.run(Rack(self.name, self.directory).host(node).status())[unit])

    def log(self, node: str, unit: str, lines: int = 0) -> str:
        return self.sandbox("logs", node, unit, "--lines", str(lines))


def _exports(text: str) -> dict[str, str]:
    words = shlex.split(text)
    return dict(word.split("=", 1) for word in words if word.startswith("SKYRACK_"))


def _run(argv: list[str], environment: dict[str, str], limit_s: float) -> str:
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
    done.check_returncode()
    return done.stdout
