"""A daemon of ours as a process: started, killed, paused, started again; its output in a file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

END_S = 20.0


class Process:
    def __init__(self, name: str, directory: Path, argv: Sequence[str], environ: dict[str, str] | None = None) -> None:
        self.name, self.directory = name, directory
        self._argv = ["setpriv", "--pdeathsig", "KILL", "--", *argv]  # nothing outlives a harness that is killed
        self._environ = {**os.environ, **(environ or {})}
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._child.pid if self.alive and self._child else 0

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def log(self) -> str:
        return (self.directory / f"{self.name}.log").read_text(errors="replace")

    def start(self) -> None:
        with (self.directory / f"{self.name}.log").open("ab") as log:
            self._child = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environ)

    def send(self, number: signal.Signals) -> None:
        if self.alive and self._child:
            self._child.send_signal(number)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int | None:
        """Ends it, by force when it does not obey. Gives its exit code."""
        if self._child is None:
            return None
        self.send(signal.SIGCONT)
        self.send(number)
        try:
            return await asyncio.to_thread(self._child.wait, END_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            await asyncio.to_thread(self._child.wait)
            return None

    def kill(self) -> None:
        """Whatever it is at."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    async def ended(self, limit_s: float) -> int:
        """Its exit code, when it has ended by itself. Errors: subprocess.TimeoutExpired."""
        assert self._child is not None
        return await asyncio.to_thread(self._child.wait, limit_s)


def program(module: str, *words: str) -> list[str]:
    return [sys.executable, "-m", module, *words]


def toml(keys: dict[str, object], **sections: dict[str, object]) -> str:
    """Strings, numbers, booleans and lists of them: JSON's spelling is TOML's."""
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
    return text + "".join(f"\n[{name}]\n{toml(inner)}" for name, inner in sections.items())
