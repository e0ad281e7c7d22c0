"""Process 1 of a host in the box: starts its units, reaps orphans, restarts what failed, obeys a control socket.

What systemd does for a real machine, as far as the box needs it: `Type=notify`, `Restart=on-failure` with a growing delay,
`KillMode=process` (only a unit's main process is ever signalled: guests, dnsmasq and qemu-storage-daemon outlive it) and
`ConditionPathExists`. Run by itself with `python -I -S` so that it stays small: it imports nothing but the standard library.
Its end is a power failure: the kernel kills everything in the PID namespace.

Files, all under /run/init: `units.json` (list of {name, argv, env, notify, needs}), `control` (stream socket: one JSON line
in, one out), `<unit>.notify` (sd_notify). Output of units goes to /var/log/skyrack/<unit>.log.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

HOME = "/run/init"
LOGS = "/var/log/skyrack"
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
RESTART_DELAY_S = (0.2, 0.5, 1.0, 2.0, 5.0)
STEADY_AFTER_S = 10.0
STOP_PATIENCE_S = 10.0
REQUEST_BYTES_MAX = 4096


class Unit:
    """One daemon. States: stopped, starting (not READY yet), running, waiting (will be restarted), done, blocked."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.name: str = spec["name"]
        self.argv: list[str] = spec["argv"]
        self.env: dict[str, str] = spec.get("env", {})
        self.notify: bool = spec.get("notify", False)
        self.needs: str = spec.get("needs", "")
        self.state = "stopped"
        self.pid = 0
        self.restarts = 0
        self.failures = 0
        self.exit: int | None = None
        self.started_at = 0.0
        self.due_at: float | None = None
        self.wanted = False
        self.status = ""
        self.inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self.inbox.bind(f"{HOME}/{self.name}.notify")

    def start(self) -> None:
        self.due_at = None
        self.wanted = True
        if self.pid:
            return
        if self.needs and not os.path.exists(self.needs):
            self.state, self.status = "blocked", f"waits for {self.needs}"
            return
        environment = dict(ENVIRONMENT, **self.env)
        if self.notify:
            environment["NOTIFY_SOCKET"] = f"{HOME}/{self.name}.notify"
        self.started_at, self.status = time.monotonic(), ""
        try:
            self.pid = os.posix_spawnp(
                self.argv[0],
                self.argv,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, f"{LOGS}/{self.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE],
            )
        except OSError as error:
            self.exit, self.status = 127, f"{self.argv[0]}: {error.strerror}"
            self.plan_restart()
            return
        self.state = "starting" if self.notify else "running"

    def stop(self) -> None:
        self.wanted = False
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)
            os.kill(self.pid, signal.SIGCONT)
            self.due_at = time.monotonic() + STOP_PATIENCE_S
        else:
            self.state, self.due_at = "stopped", None

    def ended(self, status: int) -> None:
        """The main process is gone: `status` as of waitpid."""
        code = os.waitstatus_to_exitcode(status)
        self.pid, self.exit = 0, code
        if not self.wanted:
            self.state, self.due_at = "stopped", None
        elif code == 0:
            self.state = "done"
        else:
            self.plan_restart()

    def plan_restart(self) -> None:
        steady = time.monotonic() - self.started_at > STEADY_AFTER_S
        self.failures = 0 if steady else self.failures + 1
        self.restarts += 1
        self.state = "waiting"
        self.due_at = time.monotonic() + RESTART_DELAY_S[min(self.failures, len(RESTART_DELAY_S) - 1)]

    def due(self) -> None:
        """The moment of `due_at` has come: a restart, or the end of patience with a unit that was told to stop."""
        self.due_at = None
        if self.wanted:
            self.start()
        elif self.pid:
            os.kill(self.pid, signal.SIGKILL)

    def hear(self) -> None:
        """Reads one sd_notify(3) message."""
        for line in self.inbox.recv(4096).decode(errors="replace").splitlines():
            key, _, value = line.partition("=")
            if key == "READY" and self.state == "starting":
                self.state = "running"
            elif key == "STATUS":
                self.status = value

    def describe(self) -> dict[str, Any]:
        fields = ("name", "state", "pid", "restarts", "exit", "status")
        return {**{f: getattr(self, f) for f in fields}, "pss_kib": pss_kib(self.pid) if self.pid else 0}


def pss_kib(pid: int) -> int:
    """Proportional set size of a process in KiB, 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("Pss:")), 0)
    except OSError:
        return 0


class Supervisor:
    def __init__(self, specs: list[dict[str, Any]]) -> None:
        self.units = {spec["name"]: Unit(spec) for spec in specs}
        self.poll = select.poll()
        self.readers: dict[int, Callable[[], None]] = {}
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self.control.bind(f"{HOME}/control")
        self.control.listen(16)
        os.chmod(f"{HOME}/control", 0o600)
        self.leaving = False
        self.watch_signals()
        self.watch(self.control.fileno(), self.answer)
        for unit in self.units.values():
            self.watch(unit.inbox.fileno(), unit.hear)

    def watch(self, descriptor: int, reader: Callable[[], None]) -> None:
        self.readers[descriptor] = reader
        self.poll.register(descriptor, select.POLLIN)

    def watch_signals(self) -> None:
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        self.watch(reading, lambda: self.signalled(os.read(reading, 512)))

    def signalled(self, numbers: bytes) -> None:
        if signal.SIGTERM in numbers:
            self.leaving = True
            for unit in self.units.values():
                unit.stop()
        self.reap()

    def reap(self) -> None:
        mine = {unit.pid: unit for unit in self.units.values() if unit.pid}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in mine:
                mine[pid].ended(status)

    def run(self) -> None:
        for unit in self.units.values():
            unit.start()
        while not (self.leaving and not any(unit.pid for unit in self.units.values())):
            now = time.monotonic()
            for unit in self.units.values():
                if unit.due_at is not None and unit.due_at <= now:
                    unit.due()
            dues = [unit.due_at for unit in self.units.values() if unit.due_at is not None]
            wait_ms = max(0, int((min(dues) - now) * 1000) + 1) if dues else None
            for descriptor, _ in self.poll.poll(wait_ms):
                self.readers[descriptor]()

    def answer(self) -> None:
        """One request a connection. A slow or broken client loses its answer, nothing else."""
        try:
            client, _ = self.control.accept()
        except BlockingIOError:
            return
        with client:
            client.settimeout(1.0)
            try:
                request = json.loads(client.makefile("rb").readline(REQUEST_BYTES_MAX))
                client.sendall(json.dumps(self.obey(request)).encode() + b"\n")
            except (OSError, ValueError, KeyError, TypeError) as error:
                print(f"control: {error!r}", file=sys.stderr)

    def obey(self, request: dict[str, Any]) -> dict[str, Any]:
        action = request["do"]
        if action == "status":
            total = sum(pss_kib(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
            return {"units": [unit.describe() for unit in self.units.values()], "own_pss_kib": pss_kib(1), "pss_kib": total}
        unit = self.units.get(request["unit"])
        if unit is None:
            return {"error": f"no unit {request['unit']!r}; there are: {', '.join(self.units) or 'none'}"}
        if action == "start":
            unit.start()
        elif action == "stop":
            unit.stop()
        elif action == "signal":
            if not unit.pid:
                return {"error": f"{unit.name} is not running"}
            os.kill(unit.pid, request["number"])
        return {"units": [unit.describe()]}


if __name__ == "__main__":
    os.makedirs(LOGS, exist_ok=True)
    with open(f"{HOME}/units.json") as file:
        supervisor = Supervisor(json.load(file))
    supervisor.run()
