"""One host in the box: its own network, mounts, name, IPC, processes and control groups, on the machine's file system.

Private to a host are /run (emptied at each start), /var, /etc/skyrack, /etc/libvirt and /etc/hosts, all from its directory;
/proc and /sys show its own processes and interfaces. Process 1 is `supervisor.py`; killing it is a power failure: everything
in the host is gone at once, what was on its disk is there at the next start.

A host is found again by name: its network namespace and control groups carry `namespace`, so that whoever comes after a
crashed launcher can `remove()` it with nothing else known.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import signal
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemonkit.command import run
from daemonkit.errors import Conflict, DeadlineExceeded, NotFound, Unavailable
from skyrack.sandbox import hypervisor, launch, namespace
from skyrack.sandbox.cgroup import ControlGroup, Hierarchy
from skyrack.sandbox.unit import Unit

SUPERVISOR = Path(__file__).with_name("supervisor.py")
UNSHARE = ("unshare", "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--fork", "--kill-child", "--propagation", "private")
DIRECTORIES = ("run/init", "run/lock", "etc/skyrack", "etc/libvirt", "var/lib/skyrack", "var/log", "var/cache", "var/tmp")
BOOT_LIMIT_S = 20.0
DEATH_LIMIT_S = 20.0
POLL_S = 0.02


@dataclass(frozen=True)
class UnitStatus:
    """As the supervisor sees it. `pid` is as inside the host; `exit` the last end: code, or minus the signal."""

    name: str
    state: str
    pid: int
    restarts: int
    exit: int | None
    status: str
    pss_kib: int


def setup_script(name: str, directory: Path, groups: Iterable[Hierarchy], keep: Iterable[Path]) -> str:
    """The shell script that turns fresh namespaces into the host and becomes its process 1.

    `keep`: directories of the machine that must stay visible though they lie under /var or /run (our own code).
    """
    home = shlex.quote(str(directory))
    lines = [
        "set -e",
        f"cd {home}",
        "read -r pid _ < /proc/self/stat",  # still the machine's /proc: our number out there
        "echo $pid > pid.new && mv pid.new pid",
        f"hostname {shlex.quote(name)}",
        "mount -t proc proc /proc",
        "mount -t sysfs sysfs /sys",
        *_cgroup_mounts(groups),
        *(f"test ! -e etc/{file} || mount --bind etc/{file} /etc/{file}" for file in ("hosts", "passwd", "group")),
    ]
    for path in keep:
        copy = shlex.quote(str(path).lstrip("/"))
        lines += [f"mkdir -p {copy}", f"mount --rbind {shlex.quote(str(path))} {copy}"]
    lines += [f"mount --bind etc/{part} /etc/{part}" for part in ("skyrack", "libvirt")]
    lines += ["mount --rbind run /run", "mount --rbind var /var", "cd /"]
    lines += [f"exec {shlex.quote(sys.executable)} -I -S {shlex.quote(str(SUPERVISOR))}"]
    return "\n".join(lines)


def _cgroup_mounts(groups: Iterable[Hierarchy]) -> list[str]:
    """The host's own view: its group is the root. v1 gets its trees one by one, v2 alone is mounted as one."""
    groups = list(groups)
    first = [g for g in groups if not g.unified and not g.controllers.startswith("name=")]
    if not groups:
        return []
    if not first:
        # v2 forbids processes in a group that hands controllers on, which libvirt does with the root
        return [
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
            "mkdir -p /sys/fs/cgroup/init",
            "echo 0 > /sys/fs/cgroup/init/cgroup.procs",
        ]
    lines = ["mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup"]
    for group in first:
        at = f"/sys/fs/cgroup/{group.path.name}"
        lines += [f"mkdir {at}", f"mount -t cgroup -o {group.controllers} cgroup {at} || rmdir {at}"]
    return lines


class Host:
    """`directory` holds its disk; its length does not matter. `virtualization`: give it libvirt (units virtlogd, libvirtd).

    `names`: further lines for its /etc/hosts, name to address. `warm`: directory of saved QEMU capabilities, see `hypervisor`.
    `plug` is called at power on, when the network namespace is there and new: it brings the interfaces.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        namespace_name: str | None = None,
        units: Sequence[Unit] = (),
        virtualization: bool = False,
        names: Mapping[str, str] | None = None,
        warm: Path | None = None,
        plug: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.name = name
        self.directory = directory
        self.namespace = namespace_name or name
        self.units = ((*hypervisor.UNITS, *units)) if virtualization else tuple(units)
        self.virtualization = virtualization
        self.names = dict(names or {})
        self.warm = warm
        self.plug = plug
        self.groups = ControlGroup(self.namespace)

    # -- power

    async def start(self) -> None:
        """Powers on; returns when process 1 answers (its units may still be starting). Does nothing to a running host.

        Errors: Unavailable with the console's last lines when it does not come up.
        """
        if self.pid() is not None:
            return
        await self.power_off()
        self._write_disk()
        await namespace.ensure(self.namespace)
        if self.plug:
            await self.plug()
        self.groups.create()
        # setsid --fork: a power supply of its own, which does not end with the launcher
        await launch.run("setsid", "--fork", "bash", "-ec", self._boot_script(), "boot", *self.groups.entrances())
        try:
            async with asyncio.timeout(BOOT_LIMIT_S):
                await self._until_answering()
        except TimeoutError:
            raise Unavailable(f"host {self.name} did not start: {self.console()}") from None

    def _write_disk(self) -> None:
        shutil.rmtree(self.directory / "run", ignore_errors=True)
        for path in (
            "run/init",
            "run/lock",
            "etc/skyrack",
            "etc/libvirt",
            "var/lib/skyrack",
            "var/log",
            "var/cache",
            "var/tmp",
        ):
            (self.directory / path).mkdir(parents=True, exist_ok=True)
        (self.directory / "pid").unlink(missing_ok=True)
        for link, target in (("var/run", "/run"), ("var/lock", "/run/lock")):
            with suppress(FileExistsError):
                (self.directory / link).symlink_to(target)
        lines = [f"{address} {name}" for name, address in {"localhost": "127.0.0.1", **self.names}.items()]
        if self.name not in self.names:  # libvirtd resolves it at every start of a domain
            lines.append(f"127.0.1.1 {self.name}")
        (self.directory / "etc/hosts").write_text("\n".join(lines) + "\n")
        (self.directory / "run/init/units.json").write_text(json.dumps([_plain(unit) for unit in self.units]))
        for mount_point in ("/etc/skyrack", "/etc/libvirt"):
            Path(mount_point).mkdir(exist_ok=True)
        if self.virtualization and not (self.directory / "etc/libvirt/libvirtd.conf").exists():
            for path in ("var/lib/libvirt", "var/cache/libvirt", "var/log/libvirt"):
                (self.directory / path).mkdir(parents=True, exist_ok=True)
            hypervisor.configure(self.directory / "etc", str(uuid.uuid4()))
            if self.warm:
                hypervisor.warm_capabilities(self.directory / "var", self.warm)

    def _boot_script(self) -> str:
        setup = setup_script(self.name, self.directory, self.groups.hierarchies, _kept())
        console = shlex.quote(str(self.directory / "console.log"))
        boot = shlex.join(namespace.enter(self.namespace, *UNSHARE, "sh", "-c", setup))
        release = f"exec {lock}>&-; " if (lock := launch.held()) is not None else ""
        return f'exec < /dev/null > {console} 2>&1; for group; do echo 0 > "$group"; done; {release}exec {boot}'

    async def _until_answering(self) -> None:
        doomed_at = asyncio.get_running_loop().time() + 1.0
        while True:
            with suppress(OSError, Unavailable):
                await self.request({"do": "status"})
                return
            if asyncio.get_running_loop().time() > doomed_at and not self._everyone():
                raise Unavailable(f"host {self.name} did not start: {self.console()}")
            await asyncio.sleep(POLL_S)

    async def power_off(self) -> None:
        """Pulls the plug: SIGKILL for process 1, and with it for all; interfaces, rules and routes are gone too.

        Errors: DeadlineExceeded if something lives on.
        """
        pid = self.pid()
        if pid is not None:
            _kill(pid)
        with suppress(OSError):
            self.groups.freeze(False)
        try:
            async with asyncio.timeout(DEATH_LIMIT_S):
                await self._until_dead(kill_after=asyncio.get_running_loop().time() + 0.3)
        except TimeoutError:
            raise DeadlineExceeded(f"processes of {self.name} do not end: {sorted(self._everyone())}") from None
        await namespace.delete(self.namespace)

    async def _until_dead(self, kill_after: float) -> None:
        """The plug takes the PID namespace; what somebody put into the network namespace from outside is killed here."""
        while everyone := self._everyone():
            if asyncio.get_running_loop().time() > kill_after or self.pid() is None:
                for pid in everyone:
                    _kill(pid)
            await asyncio.sleep(POLL_S)

    async def remove(self) -> None:
        """Powers off and leaves nothing: no process, namespace, control group, file. May be called at any time, and twice."""
        await self.power_off()
        await self.groups.remove()
        await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    def freeze(self, frozen: bool) -> None:
        """Stops every process of the host in its tracks, or lets them go on. Its network stays up."""
        if not self.groups.freeze(frozen):
            raise Conflict("this machine has no cgroup freezer")

    def pid(self) -> int | None:
        """Process 1 as the machine numbers it, None when the host is off."""
        try:
            pid = int((self.directory / "pid").read_text())
            if (Path("/proc") / str(pid) / "ns/net").stat().st_ino == (namespace.DIRECTORY / self.namespace).stat().st_ino:
                return pid
        except (OSError, ValueError):
            pass
        return None

    def _everyone(self) -> set[int]:
        return (namespace.pids(self.namespace) | self.groups.pids()) - {os.getpid()}

    def console(self) -> str:
        """The last words of the start-up."""
        with suppress(OSError):
            return " / ".join((self.directory / "console.log").read_text(errors="replace").splitlines()[-3:])
        return ""

    # -- inside

    def enter(self, *command: str) -> list[str]:
        """argv that runs `command` in all of the host's namespaces. Errors: Unavailable when it is off."""
        pid = self.pid()
        if pid is None:
            raise Unavailable(f"host {self.name} is off")
        return ["nsenter", "--target", str(pid), "--all", "--", *command]

    async def execute(self, *command: str, stdin: bytes | None = None, timeout_s: float = 30.0, check: bool = True) -> str:
        """Its standard output. Errors: CommandFailed, DeadlineExceeded, Unavailable."""
        return await run(*self.enter(*command), stdin=stdin, timeout_s=timeout_s, check=check)

    async def status(self) -> dict[str, UnitStatus]:
        answer = await self.request({"do": "status"})
        return {unit["name"]: UnitStatus(**unit) for unit in answer["units"]}

    async def start_unit(self, unit: str) -> None:
        await self.request({"do": "start", "unit": unit})

    async def stop_unit(self, unit: str) -> None:
        """SIGTERM to its main process, SIGKILL after 10 s; returns when it has ended. Its children may live on."""
        await self.request({"do": "stop", "unit": unit})
        await self.until(unit, "stopped")

    async def restart_unit(self, unit: str) -> None:
        await self.stop_unit(unit)
        await self.start_unit(unit)

    async def signal_unit(self, unit: str, number: signal.Signals) -> None:
        """To the main process only. SIGKILL looks like a crash: it is started again."""
        await self.request({"do": "signal", "unit": unit, "number": int(number)})

    async def until(self, unit: str, state: str = "running", timeout_s: float = 20.0) -> UnitStatus:
        """Waits until the unit is in that state. Errors: DeadlineExceeded telling the state it is in, NotFound."""
        status: UnitStatus | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    units = await self.status()
                    if unit not in units:
                        raise NotFound("unit", unit)
                    status = units[unit]
                    if status.state == state:
                        return status
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            seen = f"{status.state} (exit {status.exit}) {status.status}" if status else "silent"
            raise DeadlineExceeded(f"{unit} on {self.name} is {seen}, not {state}, after {timeout_s:g} s") from None

    def log(self, unit: str) -> Path:
        return self.directory / "var/log/skyrack" / f"{unit}.log"

    async def request(self, message: Mapping[str, Any], timeout_s: float = 10.0) -> dict[str, Any]:
        """One exchange with the supervisor. Errors: Unavailable (off, frozen, slow), Conflict (it refuses, and says why)."""
        try:
            async with asyncio.timeout(timeout_s):
                line = await self._exchange(json.dumps(message).encode() + b"\n")
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"host {self.name} does not answer: {str(error) or 'time is up'}") from None
        if not line:
            raise Unavailable(f"host {self.name} hung up")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Conflict(f"{self.name}: {answer['error']}")
        return answer

    async def _exchange(self, line: bytes) -> bytes:
        # by way of a descriptor: socket addresses hold 107 bytes, directories may be longer
        home = os.open(self.directory / "run/init", os.O_PATH | os.O_CLOEXEC)
        try:
            reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{home}/control")
        finally:
            os.close(home)
        try:
            writer.write(line)
            return await reader.readline()
        finally:
            writer.close()


def _plain(unit: Unit) -> dict[str, Any]:
    return {"name": unit.name, "argv": unit.argv, "notify": unit.notify, "needs": unit.needs, "env": dict(unit.env)}


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _kept() -> list[Path]:
    """Where our code and its interpreter live, when a private /var or /run would hide them."""
    ours = {Path(sys.prefix), Path(__file__).resolve().parents[2]}
    hidden = (Path("/var"), Path("/run"))
    return sorted(path for path in ours if any(path.is_relative_to(h) for h in hidden))
