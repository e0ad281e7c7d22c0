"""A whole sandbox: brought up, looked at, hurt, mended and cleared away.

Every step first looks whether it is done, so `up` finishes what an earlier `up` left half-way, and `down` needs nothing but
the name: namespaces, control groups and processes are found by it, whatever the launcher managed to write before it died.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from daemonkit import command
from daemonkit.errors import Conflict, NotFound, SkyrackError, Unavailable
from skyrack.sandbox import cgroup, config, hypervisor, launch, layout, namespace, state
from skyrack.sandbox.fabric import Fabric
from skyrack.sandbox.host import Host
from skyrack.sandbox.layout import API_PORT, CLIENT, NETWORKS, Node
from skyrack.sandbox.state import State
from skyrack.sandbox.unit import Unit

RELAY = Path(__file__).with_name("relay.py")
FIRST_PORT, PORTS_MAX = 7700, 100
DOWN_PATIENCE_S = 60.0
MODULES = ("br_netfilter", "vxlan", "tun", "nf_conntrack")
Units = Callable[[Node, Sequence[Node]], list[Unit]]  # of a node, beside these controllers


class Missing(NotFound):
    """Names what is not there, and says what is."""

    def __init__(self, kind: str, name: str, advice: str) -> None:
        SkyrackError.__init__(self, f"no {kind} {name!r}; {advice}", kind=kind, id=name)


class Rack:
    """`units` says what runs in a node: the daemons, or a test's stand-ins."""

    def __init__(self, name: str, directory: Path | None = None, units: Units = config.units) -> None:
        self.name = layout.check_name(name)
        self.directory = directory or state.base() / name
        self.prefix = f"skyrack-{name}-"
        self.fabric = Fabric(self.prefix)
        self._units = units

    # -- what there is

    def state(self) -> State:
        """Errors: NotFound when there is no such sandbox."""
        found = state.load(self.directory)
        if found is None:
            raise Missing("sandbox", self.name, "bring one up with: skyrack sandbox up")
        return found

    def nodes(self) -> list[Node]:
        return layout.nodes(self.state().counts)

    def controllers(self) -> list[Node]:
        return _controllers(self.nodes())

    def host(self, name: str) -> Host:
        """Errors: NotFound, naming those there are."""
        nodes = self.nodes()
        for node in nodes:
            if node.name == name:
                return self._host(node, nodes)
        raise Missing("node", name, f"there are {', '.join(n.name for n in nodes)}")

    def _host(self, node: Node, nodes: list[Node]) -> Host:
        return Host(
            node.name,
            self.directory / "hosts" / node.name,
            namespace_name=f"{self.prefix}{node.name}",
            units=self._units(node, _controllers(nodes)),
            virtualization="compute" in node.kind.roles,
            names={other.name: other.address for other in nodes},
            warm=self._warm,
            plug=lambda: self.fabric.connect(node.name, node.plugs()),
        )

    @property
    def _warm(self) -> Path:
        """Shared by all sandboxes of the machine; "-" keeps it apart from their names."""
        return self.directory.parent / "qemu-capabilities"

    def enter(self, node: str, *command: str) -> list[str]:
        """argv that runs `command` in a node, or with the client's network on the `internet`. Errors: NotFound, Unavailable."""
        if node == CLIENT:
            return namespace.enter(self.fabric.client, *command)
        return self.host(node).enter(*command)

    # -- up and down

    def alone(self, patience_s: float = 0.0) -> AbstractAsyncContextManager[None]:
        """Whoever changes what there is does it inside: one launcher at a time. Errors: Conflict."""
        return launch.alone(self._lock, patience_s)

    @property
    def _lock(self) -> Path:
        return self.directory.parent / f"{self.name}.lock"

    def plan(self, counts: dict[str, int]) -> State:
        """Writes down what is going to exist, or gives what was written before. Errors: Conflict on other counts."""
        layout.nodes(counts)
        found = state.load(self.directory)
        if found is not None and found.counts != counts:
            raise Conflict(f"sandbox {self.name!r} exists with {found.counts}; `sandbox down` comes first")
        if found is None and namespace.names(self.prefix):
            raise Conflict(f"a sandbox {self.name!r} exists elsewhere on this machine (or was left there: `sandbox down`)")
        if found is None:
            found = State(self.name, counts)
            found.save(self.directory)
        return found

    async def power_on(self, counts: dict[str, int]) -> None:
        """Fabric, hosts and the door at 127.0.0.1, side by side. Daemons that wait for a certificate go on waiting.

        To be called inside `alone`.
        """
        self.plan(counts)
        await _load_modules()
        await self.fabric.build()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.open_door())
            for node in self.nodes():
                group.create_task(self.start(node))

    async def start(self, node: Node) -> None:
        """Its files are written at every power on: the box's configuration is the plan's."""
        host = self._host(node, self.nodes())
        etc = host.directory / "etc/skyrack"
        etc.mkdir(parents=True, exist_ok=True)
        for name, text in config.files(node, self.controllers()).items():
            (etc / name).write_text(text)
        await host.start()

    async def down(self) -> None:
        """Leaves nothing. May follow any crash, and itself; waits for what a dead launcher started and has not ended yet."""
        async with self.alone(patience_s=DOWN_PATIENCE_S):
            for host in (self.directory / "hosts").glob("k*"):
                with suppress(OSError):
                    hypervisor.keep_capabilities(host / "var", self._warm)
            async with asyncio.TaskGroup() as group:
                for name in namespace.names(self.prefix) | cgroup.names(self.prefix):
                    remains = Host(name, self.directory / "hosts" / name.removeprefix(self.prefix), namespace_name=name)
                    group.create_task(remains.remove())
            await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)
            self._lock.unlink(missing_ok=True)

    # -- the door

    async def open_door(self) -> None:
        """The relay, on ports that are remembered. Errors: Unavailable when no port is to be had."""
        if any(RELAY.name in _command_line(pid) for pid in namespace.pids(self.fabric.namespace)):
            return
        for attempt in range(3):
            self._choose_ports(afresh=attempt > 0)
            doors = [
                word
                for node in self.controllers()
                for word in (
                    str(self.state().api_ports[node.name]),
                    str(namespace.DIRECTORY / f"{self.prefix}{node.name}"),
                    node.address,
                    str(API_PORT),
                )
            ]
            home = str(namespace.DIRECTORY / self.fabric.namespace)
            lock = -1 if (held := launch.held()) is None else held
            argv = ("setsid", "--fork", sys.executable, "-I", "-S", str(RELAY), str(lock), home, *doors)
            if "listening" in await launch.run(*argv):
                return
        raise Unavailable("cannot listen on 127.0.0.1")

    def _choose_ports(self, afresh: bool) -> None:
        """Remembers a port for each controller before anything listens there."""
        known = self.state()
        ports = {} if afresh else dict(known.api_ports)
        for node in self.controllers():
            if node.name not in ports:
                ports[node.name] = _free_port(set(ports.values()))
        if ports != known.api_ports:
            replace(known, api_ports=ports).save(self.directory)

    def endpoint(self, controller: str) -> str:
        return f"127.0.0.1:{self.state().api_ports[controller]}"

    # -- hurting and mending

    async def cut(self, node: str, network: str | None) -> None:
        if node != CLIENT:
            self.host(node)
        if network is not None and network not in NETWORKS:
            raise Missing("network", network, f"there are {', '.join(NETWORKS)}")
        await self.fabric.cut(node, NETWORKS[network] if network else None)

    async def kill(self, node: str, unit: str | None) -> None:
        """SIGKILL for a daemon (it comes back by itself), or a power failure of the whole node (it does not)."""
        host = self.host(node)
        if unit is None:
            await host.power_off()
        else:
            await host.signal_unit(unit, signal.SIGKILL)

    async def pause(self, node: str, unit: str | None, paused: bool) -> None:
        """A process, or all of a node, that hangs without ending: its connections stay open and silent."""
        host = self.host(node)
        if unit is None:
            host.freeze(paused)
        else:
            await host.signal_unit(unit, signal.SIGSTOP if paused else signal.SIGCONT)

    # -- looking

    async def status(self) -> dict[str, Any]:
        """{name, directory, endpoints, client, cut, nodes: [{name, roles, address, power, pss_mib, units: [...]}]}."""
        plan = self.state()
        hosts = {node: self._host(node, self.nodes()) for node in self.nodes()}
        seen = await asyncio.gather(*(_look(host) for host in hosts.values()))
        wires = self.fabric.namespace in namespace.names(self.prefix)
        return {
            "name": self.name,
            "directory": str(self.directory),
            "endpoints": [f"127.0.0.1:{port}" for port in plan.api_ports.values()],
            "client": layout.CLIENT_ADDRESS,
            "cut": [list(pair) for pair in await self.fabric.cut_cables()] if wires else [],
            "nodes": [
                {"name": node.name, "roles": list(node.kind.roles), "address": node.address, **look}
                for node, look in zip(hosts, seen, strict=True)
            ],
        }


def _controllers(nodes: Sequence[Node]) -> list[Node]:
    return [node for node in nodes if "controller" in node.kind.roles]


async def _look(host: Host) -> dict[str, Any]:
    pid = host.pid()
    if pid is None:
        return {"power": "off", "pid": 0, "pss_mib": 0.0, "units": []}
    try:
        answer = await host.request({"do": "status"}, timeout_s=2.0)
    except SkyrackError:
        return {"power": "hung", "pid": pid, "pss_mib": 0.0, "units": []}
    units = [{"pss_mib": round(unit.pop("pss_kib") / 1024, 1), **unit} for unit in answer["units"]]
    return {"power": "on", "pid": pid, "pss_mib": round(answer["pss_kib"] / 1024, 1), "units": units}


def _command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return ""


def _free_port(taken: set[int]) -> int:
    """A well-known one if possible, so that what people wrote down yesterday works today."""
    for port in (*range(FIRST_PORT, FIRST_PORT + PORTS_MAX), 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            if port not in taken:
                return int(probe.getsockname()[1])
    raise Unavailable("no free port on 127.0.0.1")


async def _load_modules() -> None:
    """What the hosts' kernel must have. br_netfilter would also filter the machine's own bridges: there it stays off."""
    if not _bridge_knobs():
        await command.run("modprobe", "-a", "-q", *MODULES, check=False)
        for knob in _bridge_knobs():
            knob.write_text("0")


def _bridge_knobs() -> list[Path]:
    return list(Path("/proc/sys/net/bridge").glob("bridge-nf-call-*"))
