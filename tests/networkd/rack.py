"""Hosts of a small rack on one machine, for tests.

A host is a process with its own network, mount and PID namespaces and a private /run; killing it ends all that runs in it.
Guests are network namespaces whose eth0 is a veth; its other end, in the host, has the port's device name, as a TAP would.
Nothing here has a route to the machine.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.networkd.controller import Controller
from tests.pki import Pki

PLAIN = "ip link set lo up && echo up && exec sleep 100000"
HOLD = f"mount -t tmpfs none /run && mkdir -p /run/netns && mount -t sysfs none /sys && {PLAIN}"


def _hold(*, private: bool) -> subprocess.Popen[str]:
    """A process that keeps namespaces alive. Its parent `unshare` takes it along when killed."""
    options = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
    argv = ["unshare", *(options if private else ["--net"]), "bash", "-c", HOLD if private else PLAIN]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    assert process.stdout is not None and process.stdout.readline().strip() == "up"
    return process


def _child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


class Space:
    """A set of namespaces and what can be done in it."""

    def __init__(self, *, private: bool) -> None:
        self._holder = _hold(private=private)
        self.pid = _child(self._holder.pid) if private else self._holder.pid
        self._enter = ["nsenter", "-t", str(self.pid), "-n", *(["-m", "-p"] if private else [])]

    def argv(self, *argv: str) -> list[str]:
        return [*self._enter, *argv]

    async def run(self, *argv: str, check: bool = True, timeout_s: float = 30.0, stdin: str = "") -> str:
        """Standard output and error together."""
        process = await asyncio.create_subprocess_exec(
            *self.argv(*argv), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        out, _ = await asyncio.wait_for(process.communicate(stdin.encode()), timeout_s)
        assert not check or process.returncode == 0, f"{argv}: {out.decode()}"
        return out.decode()

    async def outside(self, *argv: str) -> None:
        """In its network alone: process ids mean what they mean here."""
        await asyncio.to_thread(subprocess.run, ["nsenter", "-t", str(self.pid), "-n", *argv], check=True, timeout=30)

    async def ok(self, *argv: str) -> bool:
        process = await asyncio.create_subprocess_exec(
            *self.argv(*argv), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        return await asyncio.wait_for(process.wait(), 60) == 0

    def start(self, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(self.argv(*argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True)  # fmt: skip

    def kill(self) -> None:
        self._holder.kill()
        self._holder.wait()


@dataclass
class Host:
    name: str
    vtep: str
    space: Space
    directory: Path
    gateway: bool
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *, driver: str = "kernel", failpoint: str = "") -> None:
        config = self.directory / "networkd.toml"
        config.write_text(
            f'node = "{self.name}"\ncontrollers = ["unix:controller.sock"]\n'
            f'data_dir = "{self.directory}/data"\ntls_dir = "{self.directory.parent}/tls/{self.name}"\n'
            f'vtep = "{self.vtep}"\nlog_level = "info"\ndriver = "{driver}"\n'
            + ('[gateway]\nenabled = true\nexternal_device = "ext"\n' if self.gateway else "")
        )
        log = (self.directory / "log").open("ab")
        argv = self.space.argv(sys.executable, "-m", "networkd.daemon", "--config", str(config))
        argv.insert(1, f"--wd={self.directory.parent}")
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "SKYRACK_FAILPOINT": failpoint}
        self.processes.append(subprocess.Popen(argv, stdout=log, stderr=log, env=environment, umask=0o077))
        log.close()

    async def stop(self, number: int = signal.SIGTERM) -> None:
        """nsenter waits for the daemon, which is its child in the host's PID namespace."""
        process = self.processes.pop()
        os.kill(_child(process.pid), number)
        await asyncio.to_thread(process.wait, 20)

    def daemon_pid(self) -> int:
        return _child(self.processes[-1].pid)

    def log(self) -> str:
        return (self.directory / "log").read_text()


@dataclass
class Guest:
    space: Space
    device: str

    async def ping(self, target: str, *options: str) -> bool:
        return await self.space.ok("ping", "-c2", "-i0.2", "-W1", "-q", *options, target)

    async def tcp(self, target: str, port: int) -> bool:
        return await self.space.ok("timeout", "2", "bash", "-c", f"exec 3<>/dev/tcp/{target}/{port}")

    def serve(self, port: int) -> subprocess.Popen[str]:
        """Accepts and echoes TCP for ever."""
        return self.space.start("/usr/bin/env", "-i", sys.executable, "-S", "-c", ECHO, str(port))


ECHO = """
import socketserver, sys
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(4096):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
server = Server(("0.0.0.0", int(sys.argv[1])), Echo)
print("up", flush=True)
server.serve_forever()
"""


class Rack:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fabric: Space
        self._spaces: list[Space] = []
        self._children: list[subprocess.Popen[str]] = []
        self.hosts: dict[str, Host] = {}
        self._pki = Pki(directory / "tls")
        self.controller = Controller(directory / "controller.sock", self._pki)

    async def open(self) -> None:
        self._fabric = self.space()
        for bridge in ("data", "inet"):
            await self._fabric.run("ip", "link", "add", bridge, "up", "type", "bridge", "mcast_snooping", "0")

    def space(self, *, private: bool = False) -> Space:
        space = Space(private=private)
        self._spaces.append(space)
        return space

    async def _wire(self, space: Space, device: str, bridge: str, address: str = "") -> None:
        far = f"{bridge[0]}{space.pid}"
        await self._fabric.outside("ip", "link", "add", far, "type", "veth", "peer", "name", device, "netns", str(space.pid))
        await self._fabric.run("ip", "link", "set", far, "master", bridge, "up")
        if address:
            await space.run("ip", "addr", "add", address, "dev", device)
        await space.run("ip", "link", "set", device, "up")

    async def host(self, name: str, number: int, *, gateway: bool = False, start: bool = True) -> Host:
        space = self.space(private=True)
        directory = self._directory / name
        directory.mkdir()
        host = Host(name, f"10.20.0.{number}", space, directory, gateway)
        self.hosts[name] = host
        await self._wire(space, "data", "data", f"{host.vtep}/24")
        if gateway:
            await self._wire(space, "ext", "inet")
        self._pki.node(name, "edge")
        if start:
            if not self.controller.running:
                await self.controller.start()
            host.start()
            await self.controller.session(name)
        return host

    async def internet(self, address: str = "203.0.113.254/24") -> Guest:
        space = self.space()
        await self._wire(space, "eth0", "inet", address)
        return Guest(space, "")

    async def guest(self, host: Host, device: str, mac: str, address: str = "", gateway: str = "") -> Guest:
        """`address` "" = the guest asks DHCP itself."""
        space = self.space()
        peer = ["peer", "name", "eth0", "address", mac, "netns", str(space.pid)]
        await host.space.outside("ip", "link", "add", device, "type", "veth", *peer)
        for action in (
            ["link", "set", "eth0", "mtu", "1450", "up"],
            *([["addr", "add", address, "dev", "eth0"]] if address else []),
        ):
            await space.run("ip", *action)
        if gateway:
            await space.run("ip", "route", "add", "default", "via", gateway)
        return Guest(space, device)

    def serve(self, guest: Guest, port: int) -> None:
        process = guest.serve(port)
        assert process.stdout is not None and process.stdout.readline().strip() == "up"
        self._children.append(process)

    def keep(self, process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        self._children.append(process)
        return process

    async def close(self) -> None:
        for child in self._children:
            child.kill()
            child.wait()
        for host in self.hosts.values():
            for process in host.processes:
                process.kill()
                process.wait()
        await self.controller.stop()
        for space in reversed(self._spaces):
            space.kill()


async def eventually(condition: Callable[[], Awaitable[bool]], timeout_s: float = 20.0) -> bool:
    """For what nobody reports: asks again and again."""
    for _ in range(int(timeout_s / 0.1)):
        if await condition():
            return True
        await asyncio.sleep(0.1)
    return False
