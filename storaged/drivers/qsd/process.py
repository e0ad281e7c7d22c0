"""The storage daemon as a process: one qemu-storage-daemon, which outlives storaged.

Volumes must stay served while storaged is restarted or upgraded, so the daemon detaches itself at its start and is found again
by its pid file, its command line in /proc and its QMP socket. It listens on a socket that we make: with TCP_NODELAY, which
accepted connections inherit (QEMU 7.2 does not set it, and small writes are twenty times slower without).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from daemonkit import command
from daemonkit.errors import CommandFailed, ConfigError, Unavailable
from daemonkit.tls import TlsFiles

log = logging.getLogger(__name__)

PROGRAM = "qemu-storage-daemon"
START_TIMEOUT_S = 20.0
END_TIMEOUT_S = 5.0
BACKLOG = 512
AUTHORIZATION = "clients"  # id of the list of certificates that may connect

_FD = "@fd@"


@dataclass(frozen=True)
class QsdSettings:
    """`directory`: for its socket, pid file and links to certificates. `host`, `port`: where it serves volumes."""

    directory: Path
    tls: TlsFiles
    host: str
    port: int

    @property
    def qmp(self) -> Path:
        return self.directory / "qmp.sock"

    @property
    def pid_file(self) -> Path:
        return self.directory / "pid"

    @property
    def certificates(self) -> Path:
        return self.directory / "tls"


def command_line(settings: QsdSettings, listener: str) -> list[str]:
    """`listener`: number of the file descriptor it inherits."""
    nobody = {"qom-type": "authz-list", "id": AUTHORIZATION, "policy": "deny", "rules": []}
    return [
        PROGRAM,
        "--chardev", f"socket,path={settings.qmp},server=on,wait=off,id=qmp",
        "--monitor", "chardev=qmp",
        "--object", f"tls-creds-x509,id=tls,dir={settings.certificates},endpoint=server,verify-peer=on",
        "--object", json.dumps(nobody),
        "--nbd-server", f"addr.type=fd,addr.str={listener},tls-creds=tls,tls-authz={AUTHORIZATION},max-connections=0",
        "--pidfile", str(settings.pid_file),
        "--daemonize",
    ]  # fmt: skip


def running(settings: QsdSettings) -> tuple[int, bool] | None:
    """(pid, started as we would start it today) of our daemon, or None when it is not there."""
    try:
        pid = int(settings.pid_file.read_text())
        argv = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except (OSError, ValueError):
        return None
    if not argv or Path(argv[0]).name != PROGRAM or str(settings.pid_file) not in argv:
        return None  # the number belongs to somebody else by now
    expected = command_line(settings, _FD)
    listens_at = expected.index("--nbd-server") + 1
    return pid, argv[:listens_at] == expected[:listens_at] and _listens(pid, settings)


def _listens(pid: int, settings: QsdSettings) -> bool:
    """Whether the process has the socket on our address: the number of its descriptor says nothing."""
    inodes = set()
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                inodes.add(str(entry.readlink()))
    return any(f"socket:[{inode}]" in inodes for inode in _listening_inodes(pid, settings))


def _listening_inodes(pid: int, settings: QsdSettings) -> list[str]:
    """Of the sockets in state LISTEN on our port, as /proc/net/tcp tells (proc(5): local address, state 0A, inode)."""
    v6 = ":" in settings.host
    lines = Path(f"/proc/{pid}/net/tcp6" if v6 else f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    address = _proc_address(settings.host)
    return [f[9] for f in fields if f[1] == f"{address}:{settings.port:04X}" and f[3] == "0A"]


def _proc_address(host: str) -> str:
    """As /proc/net/tcp prints it: 32-bit words in the machine's byte order (little-endian here)."""
    packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    return "".join(packed[i : i + 4][::-1].hex().upper() for i in range(0, len(packed), 4))


def link_certificates(settings: QsdSettings) -> None:
    """Gives our certificate files the names that QEMU looks for."""
    settings.certificates.mkdir(parents=True, exist_ok=True, mode=0o700)
    names = {"ca-cert.pem": settings.tls.ca, "server-cert.pem": settings.tls.certificate, "server-key.pem": settings.tls.key}
    for name, file in names.items():
        link = settings.certificates / name
        if not (link.is_symlink() and link.readlink() == file.absolute()):
            link.unlink(missing_ok=True)
            link.symlink_to(file.absolute())


@contextmanager
def listener(settings: QsdSettings) -> Iterator[socket.socket]:
    """Errors: ConfigError when the address is not ours or taken."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listening.setblocking(False)
        try:
            listening.bind((settings.host, settings.port))
            listening.listen(BACKLOG)
        except OSError as error:
            raise ConfigError(f"cannot serve volumes on {settings.host}:{settings.port}: {error.strerror}") from None
        yield listening


async def start(settings: QsdSettings) -> int:
    """Starts the daemon; it answers when this returns. Gives its pid. Errors: Unavailable, ConfigError."""
    link_certificates(settings)
    with listener(settings) as listening:
        number = listening.fileno()
        try:
            await command.run(*command_line(settings, str(number)), timeout_s=START_TIMEOUT_S, pass_fds=[number])
        except CommandFailed as error:
            log.error("the storage daemon does not start", extra={"why": error.stderr.strip()[-500:]})
            raise Unavailable("the storage daemon does not start") from None
    pid = int(settings.pid_file.read_text())
    log.info("storage daemon started", extra={"pid": pid, "address": f"{settings.host}:{settings.port}"})
    return pid


class Exit:
    """Tells when a process ends, child of ours or not, without asking again and again (pidfd_open(2))."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = -1
        self._ended = asyncio.Event()
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._ended.set()
            return
        asyncio.get_running_loop().add_reader(self._fd, self._ended.set)

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    async def wait(self) -> None:
        await self._ended.wait()

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


async def end(pid: int) -> None:
    """Kills the daemon; its volumes are not served any more. Errors: Unavailable when it does not go."""
    watched = Exit(pid)
    try:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(END_TIMEOUT_S):
            await watched.wait()
    except TimeoutError:
        raise Unavailable(f"the storage daemon (pid {pid}) does not end") from None
    finally:
        watched.close()
