"""A compute node without a hypervisor: for simulations, trials and tests of whatever sits above.

`FakeMachine` is what outlives a crash of the daemon: domains, files, images. `FakeHypervisor` and `FakeStore` are the two
ports on it. No threads, no sockets; every delay and every choice comes from the runtime's randomness, so a seed repeats a
run. Failures are injected by name: `machine.fail("start", HypervisorError(...), times=2)`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from computed.domain_xml import XmlSettings, domain_digest
from computed.drivers.base import Watcher
from computed.spec import GIB, Capacity, Disk, Domain, DomainState, Files, Server, Usage
from daemonkit.errors import Conflict, NotFound, SkyrackError, Unavailable
from daemonkit.runtime import Runtime

# Longest delay of an operation in seconds; the real ones are of this order on an idle machine.
LATENCIES_S = {
    "look": 0.002, "fetch_image": 0.5, "make_disks": 0.03, "define": 0.01, "start": 0.4, "power_button": 0.005,
    "cut_power": 0.1, "undefine": 0.005, "attach": 0.12, "detach": 0.15, "resume": 0.01, "reboot": 1.0, "remove": 0.01,
}  # fmt: skip
GUEST_STOPS_WITHIN_S = 5.0
CPU_SHARE = 0.05  # of each vCPU that a fake guest uses
BYTES_PER_S = 1000


@dataclass
class FakeDomain:
    definition: Server | None
    digest: str
    state: DomainState = DomainState.SHUTOFF
    disks: dict[str, str] = field(default_factory=dict)  # export name -> target, of the running guest
    started_s: float = 0.0
    guest_ended: bool = False
    io_error: bool = False
    ours: bool = True
    console: bytes = b""


@dataclass
class FakeMachine:
    """`obeys_power_button` and `lets_go_of_disks` say how guests behave; `reachable` whether the hypervisor answers,
    `storage_answers` whether a guest that a failed disk stopped can go on.
    """

    runtime: Runtime
    capacity: Capacity = field(default_factory=lambda: Capacity(8, 16384, "fake", "fake"))
    disk_bytes: int = 100 * GIB
    domains: dict[str, FakeDomain] = field(default_factory=dict)
    root_disks: set[str] = field(default_factory=set)
    config_drives: set[str] = field(default_factory=set)
    images: set[str] = field(default_factory=set)
    taps: set[str] | None = None  # None: every tap is there
    obeys_power_button: bool = True
    lets_go_of_disks: bool = True
    reachable: bool = True
    storage_answers: bool = True
    calls: list[tuple[str, str]] = field(default_factory=list)  # (operation, server id), for tests
    _failures: dict[str, list[SkyrackError]] = field(default_factory=dict)

    def fail(self, operation: str, error: SkyrackError, times: int = 1) -> None:
        self._failures.setdefault(operation, []).extend([error] * times)

    def forgive(self) -> None:
        """Failures that were ordered and have not come yet never come."""
        self._failures.clear()

    async def act(self, operation: str, server_id: str) -> None:
        """Every operation begins here: takes its time, or fails as ordered."""
        if operation != "look":
            self.calls.append((operation, server_id))
        await asyncio.sleep(self.runtime.jitter_s(LATENCIES_S[operation]))
        if self._failures.get(operation):
            raise self._failures[operation].pop(0)

    def domain(self, server_id: str) -> FakeDomain:
        if server_id not in self.domains:
            raise NotFound("server", server_id)
        return self.domains[server_id]

    def power_cycle(self) -> None:
        """The machine loses its power and comes back: definitions and files stay."""
        for domain in self.domains.values():
            domain.state, domain.guest_ended, domain.io_error = DomainState.SHUTOFF, False, False
            domain.disks.clear()


class FakeHypervisor:
    def __init__(self, machine: FakeMachine, settings: XmlSettings) -> None:
        self._machine, self._settings = machine, settings
        self._watcher: Watcher | None = None
        self._guests: asyncio.TaskGroup | None = None

    async def run(self, watcher: Watcher) -> None:
        self._watcher = watcher
        async with asyncio.TaskGroup() as self._guests:
            watcher.connected()
            await asyncio.Event().wait()

    def _changed(self, server_id: str) -> None:
        if self._watcher is not None:
            self._watcher.changed(server_id)

    async def _act(self, operation: str, server_id: str) -> None:
        if not self._machine.reachable:
            raise Unavailable("the hypervisor does not answer")
        await self._machine.act(operation, server_id)

    # ---- looking

    def digest(self, server: Server) -> str:
        return domain_digest(server, self._settings)

    async def domains(self) -> list[Domain]:
        await self._act("look", "")
        return [seen for server_id in self._machine.domains if (seen := self._see(server_id)).ours]

    async def look(self, server_id: str) -> Domain | None:
        await self._act("look", server_id)
        return self._see(server_id) if server_id in self._machine.domains else None

    def _see(self, server_id: str) -> Domain:
        domain = self._machine.domains[server_id]
        defined = {d.export_name: d.target for d in domain.definition.disks} if domain.definition else {}
        disks = defined if domain.state is DomainState.SHUTOFF else domain.disks
        return Domain(
            server_id, domain.state, ours=domain.ours, io_error=domain.io_error, guest_ended=domain.guest_ended,
            digest=domain.digest if domain.ours else "", disks=tuple(sorted(disks.items())),
        )  # fmt: skip

    async def usage(self) -> list[Usage]:
        now_s = self._machine.runtime.clock.boottime_s()
        running = [(i, d) for i, d in self._machine.domains.items() if d.state is DomainState.RUNNING and d.ours]
        return [_usage(server_id, domain, now_s) for server_id, domain in running]

    def capacity(self) -> Capacity | None:
        return self._machine.capacity

    def missing_interfaces(self, server: Server) -> list[str]:
        taps = self._machine.taps
        return [] if taps is None else [i.device for i in server.interfaces if i.device not in taps]

    # ---- doing

    async def define(self, server: Server) -> None:
        await self._act("define", server.server_id)
        domain = self._machine.domains.setdefault(server.server_id, FakeDomain(server, ""))
        domain.definition, domain.digest = server, self.digest(server)

    async def start(self, server_id: str) -> None:
        await self._act("start", server_id)
        domain = self._machine.domain(server_id)
        if domain.state is DomainState.SHUTOFF and domain.definition is not None:
            domain.state, domain.guest_ended = DomainState.RUNNING, False
            domain.started_s = self._machine.runtime.clock.boottime_s()
            domain.disks = {d.export_name: d.target for d in domain.definition.disks}
            domain.console = f"fake: {domain.definition.name} started\n".encode()
        self._changed(server_id)

    async def press_power_button(self, server_id: str) -> None:
        await self._act("power_button", server_id)
        if self._machine.obeys_power_button and self._guests is not None:
            self._guests.create_task(self._guest_stops(server_id))

    async def _guest_stops(self, server_id: str) -> None:
        await asyncio.sleep(self._machine.runtime.jitter_s(GUEST_STOPS_WITHIN_S))
        self.guest_switches_off(server_id)

    def guest_switches_off(self, server_id: str) -> None:
        """The guest ends itself, as by `poweroff`."""
        domain = self._machine.domains.get(server_id)
        if domain is not None and domain.state is DomainState.RUNNING:
            domain.state, domain.guest_ended = DomainState.SHUTOFF, True
            domain.disks.clear()
            self._changed(server_id)

    async def cut_power(self, server_id: str) -> None:
        await self._act("cut_power", server_id)
        domain = self._machine.domain(server_id)
        domain.state, domain.guest_ended, domain.io_error = DomainState.SHUTOFF, False, False
        domain.disks.clear()
        self._changed(server_id)

    async def resume(self, server_id: str) -> None:
        await self._act("resume", server_id)
        domain = self._machine.domain(server_id)
        if self._machine.storage_answers or not domain.io_error:
            domain.state, domain.io_error = DomainState.RUNNING, False
        self._changed(server_id)

    async def undefine(self, server_id: str) -> None:
        await self._act("undefine", server_id)
        self._machine.domains.pop(server_id, None)
        self._changed(server_id)

    async def attach(self, server_id: str, disk: Disk) -> None:
        await self._act("attach", server_id)
        self._machine.domain(server_id).disks[disk.export_name] = disk.target
        self._changed(server_id)

    async def detach(self, server_id: str, export_name: str) -> None:
        await self._act("detach", server_id)
        if self._machine.lets_go_of_disks:
            self._machine.domain(server_id).disks.pop(export_name, None)
        self._changed(server_id)

    async def reboot(self, server_id: str, *, hard: bool, grace_s: float) -> None:
        await self._act("reboot", server_id)
        if self._machine.domain(server_id).state is not DomainState.RUNNING:
            raise Conflict("the server does not run")
        if not hard and not self._machine.obeys_power_button:
            await asyncio.sleep(grace_s)

    def disk_fails(self, server_id: str) -> None:
        """The guest is held because a disk does not answer."""
        domain = self._machine.domain(server_id)
        domain.state, domain.io_error = DomainState.PAUSED, True
        self._changed(server_id)


def _usage(server_id: str, domain: FakeDomain, now_s: float) -> Usage:
    """Counters that grow steadily since the start."""
    up_s = now_s - domain.started_s
    vcpus = domain.definition.vcpus if domain.definition else 1
    memory_mib = domain.definition.memory_mib if domain.definition else 0
    moved = int(up_s * BYTES_PER_S)
    return Usage(server_id, int(up_s * vcpus * CPU_SHARE * 1e9), memory_mib * 1024, moved, moved, moved, moved)


class FakeStore:
    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine

    def files(self, server: Server) -> Files:
        here = server.server_id
        root, drive = here in self._machine.root_disks, here in self._machine.config_drives
        return Files(server.image.sha256 in self._machine.images, root, drive, anything=root or drive)

    def servers(self) -> set[str]:
        return self._machine.root_disks | self._machine.config_drives

    def images(self) -> list[str]:
        return sorted(self._machine.images)

    async def fetch_image(self, server: Server) -> None:
        await self._machine.act("fetch_image", server.server_id)
        self._machine.images.add(server.image.sha256)

    async def make_disks(self, server: Server) -> None:
        await self._machine.act("make_disks", server.server_id)
        self._machine.root_disks.add(server.server_id)
        if server.config_drive:
            self._machine.config_drives.add(server.server_id)

    async def remove(self, server_id: str) -> None:
        await self._machine.act("remove", server_id)
        self._machine.root_disks.discard(server_id)
        self._machine.config_drives.discard(server_id)

    async def console_log(self, server_id: str, bytes_max: int) -> bytes:
        domain = self._machine.domains.get(server_id)
        return domain.console[-bytes_max:] if domain and bytes_max else b""

    def disk_bytes(self) -> int:
        return self._machine.disk_bytes

    def keep_images(self, servers: Sequence[Server]) -> None:
        return None  # nothing is ever thrown out

    def close(self) -> None:
        return None
