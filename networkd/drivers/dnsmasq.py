"""dnsmasq processes, one a network, in the network's DHCP namespace.

They outlive networkd and are found again by pid file, checked against the process's command line. Everything of a network is in
one directory that says what runs: its configuration, a file a host. A new host is a new file; for anything else dnsmasq is
started again (9 ms; leases are kept).
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from daemonkit import command
from networkd.drivers import netns
from networkd.spec import name
from networkd.spec.picture import DhcpService

STOP_S = 3.0


class Dnsmasq:
    """`run_dir` must go with a reboot, as the namespaces do, and be readable by the user dnsmasq runs as."""

    def __init__(self, run_dir: Path) -> None:
        self._directory = run_dir / "dhcp"
        self._user = _user()
        self._watched: dict[str, int] = {}  # network id -> pidfd
        self.ended: Callable[[], None] = lambda: None

    def observe(self) -> dict[str, DhcpService]:
        """What runs. A network whose process died has an empty configuration."""
        found = {}
        for place in sorted(self._directory.glob("*")):
            running = self._pid(place) is not None
            conf = _read(place / "dnsmasq.conf") if running else ""
            found[place.name] = DhcpService(place.name, conf, _files(place / "hosts"), _files(place / "names"))
        return found

    def adopt(self) -> None:
        """Watches all that run."""
        for place in self._directory.glob("*"):
            pid = self._pid(place)
            if pid is not None:
                self._watch(place.name, pid)

    async def start(self, service: DhcpService) -> None:
        """Errors: CommandFailed, OSError."""
        place = self._directory / service.network_id
        await self._end(service.network_id)
        self._write(place, service)
        await command.run(
            "nsenter", f"--net={netns.path(name.dhcp_namespace(service.network_id))}", "dnsmasq",
            f"--conf-file={place / 'dnsmasq.conf'}", f"--pid-file={place / 'pid'}", f"--dhcp-leasefile={place / 'leases'}",
            f"--dhcp-hostsdir={place / 'hosts'}", f"--hostsdir={place / 'names'}", f"--user={self._user}",
            timeout_s=10.0,
        )  # fmt: skip
        pid = self._pid(place)
        if pid is None:
            raise OSError(0, "dnsmasq ended at once")
        self._watch(service.network_id, pid)

    def add(self, service: DhcpService, files: tuple[str, ...]) -> None:
        """`files`: names in hosts, or "names/..." in names."""
        place = self._directory / service.network_id
        for file in files:
            directory, _, key = file.rpartition("/")
            lines = service.names if directory else service.hosts
            _put(place, directory or "hosts", key, lines[key])

    async def stop(self, network_id: str) -> None:
        await self._end(network_id)
        shutil.rmtree(self._directory / network_id, ignore_errors=True)

    def close(self) -> None:
        for network_id in list(self._watched):
            self._unwatch(network_id)

    # ---- files

    def _write(self, place: Path, service: DhcpService) -> None:
        for part, lines in (("hosts", service.hosts), ("names", service.names)):
            shutil.rmtree(place / part, ignore_errors=True)
            _open_directory(place / part)
            for key, line in lines.items():
                _put(place, part, key, line)
        (place / "dnsmasq.conf").write_text(service.conf)
        shutil.chown(place, self._user)

    # ---- processes

    def _pid(self, place: Path) -> int | None:
        """Of a living process that runs on this very configuration."""
        try:
            pid = int(_read(place / "pid").strip() or "0")
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if pid else []
        except (OSError, ValueError):
            return None
        return pid if f"--conf-file={place / 'dnsmasq.conf'}".encode() in argv else None

    async def _end(self, network_id: str) -> None:
        self._unwatch(network_id)
        place = self._directory / network_id
        pid = self._pid(place)
        if pid is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            if await self._gone(place):
                return

    async def _gone(self, place: Path) -> bool:
        for _ in range(int(STOP_S / 0.002)):
            if self._pid(place) is None:
                return True
            await asyncio.sleep(0.002)
        return False

    def _watch(self, network_id: str, pid: int) -> None:
        if network_id in self._watched:
            return
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return
        self._watched[network_id] = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._ended, network_id)

    def _unwatch(self, network_id: str) -> None:
        descriptor = self._watched.pop(network_id, None)
        if descriptor is not None:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)

    def _ended(self, network_id: str) -> None:
        self._unwatch(network_id)
        self.ended()


def _user() -> str:
    with suppress(KeyError):
        return pwd.getpwnam("dnsmasq").pw_name
    return "nobody"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _files(directory: Path) -> Mapping[str, str]:
    return {p.name: _read(p) for p in directory.glob("*")}


def _open_directory(directory: Path) -> None:
    """Makes it and what is missing above it, readable for dnsmasq's user whatever our umask is."""
    for part in (*reversed(directory.parents), directory):
        if not part.exists():
            part.mkdir()
            part.chmod(0o755)


def _put(place: Path, directory: str, key: str, line: str) -> None:
    """Appears whole: dnsmasq reads a file as soon as it is there."""
    partial = place / f".{key}"
    partial.write_text(line)
    partial.chmod(0o644)
    partial.replace(place / directory / key)
