"""Servers as libvirt domains.

A domain of ours carries our element in its metadata, with the digest of the definition it was made from; whatever lacks it is
not ours. The persistent definition is replaced whole; live changes (volumes) are made on the running guest beside it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt

from computed.domain_xml import NAMESPACE, XmlSettings, disk_xml, domain_digest, domain_xml
from computed.drivers.base import Watcher
from computed.drivers.libvirt_connection import LibvirtConnection
from computed.spec import Capacity, Disk, Domain, DomainState, Server, Usage
from daemonkit.errors import Conflict, NotFound
from daemonkit.runtime import Runtime

KIB_IN_MIB = 1024
AT_REST = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED)
UNDEFINE_ALL = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)
USAGE_GROUPS = (
    libvirt.VIR_DOMAIN_STATS_STATE
    | libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
    | libvirt.VIR_DOMAIN_STATS_BALLOON
    | libvirt.VIR_DOMAIN_STATS_INTERFACE
    | libvirt.VIR_DOMAIN_STATS_BLOCK
)


def kvm_works(device: Path = Path("/dev/kvm"), cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether guests can run on KVM: a /dev/kvm alone is no proof, on some machines ordinary guests hang on it."""
    try:
        with device.open("r+b", buffering=0):
            flags = cpuinfo.read_text()
    except OSError:
        return False
    return any(word in ("vmx", "svm") for line in flags.splitlines() if line.startswith("flags") for word in line.split())


class LibvirtDriver:
    """The hypervisor port on libvirtd."""

    def __init__(self, uri: str, settings: XmlSettings, runtime: Runtime, *, reserved_memory_mib: int) -> None:
        self._settings, self._reserved_memory_mib = settings, reserved_memory_mib
        self._connection = LibvirtConnection(uri, runtime, self._hear, self._measure)
        self._watcher: Watcher | None = None
        self._capacity: Capacity | None = None
        self._ours: set[str] = set()
        self._reboots: dict[str, asyncio.Event] = {}

    async def run(self, watcher: Watcher) -> None:
        self._watcher = watcher
        await self._connection.run(watcher.connected)

    def _hear(self, kind: str, server_id: str) -> None:
        if kind == "REBOOT" and server_id in self._reboots:
            self._reboots[server_id].set()
        if self._watcher is not None:
            self._watcher.changed(server_id)

    # ---- the node

    def _measure(self, connection: Any) -> None:
        """Memory comes from getMemoryStats: getInfo() adds up NUMA nodes and can be far off."""
        memory_mib = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)["total"] // KIB_IN_MIB
        qemu, lib = _version(connection.getVersion()), _version(connection.getLibVersion())
        self._capacity = Capacity(
            vcpus=connection.getInfo()[2],
            memory_mib=max(memory_mib - self._reserved_memory_mib, 0),
            virt_type=self._settings.virt_type,
            hypervisor=f"QEMU {qemu}, libvirt {lib}",
        )

    def capacity(self) -> Capacity | None:
        return self._capacity

    def missing_interfaces(self, server: Server) -> list[str]:
        there = {name for _number, name in socket.if_nameindex()} if server.interfaces else set()
        return [i.device for i in server.interfaces if i.device not in there]

    # ---- looking

    async def domains(self) -> list[Domain]:
        found: list[Domain] = await self._connection.call(_list)
        ours = [domain for domain in found if domain.ours]
        self._ours = {domain.server_id for domain in ours}
        return ours

    async def look(self, server_id: str) -> Domain | None:
        domain: Domain | None = await self._connection.call(_look, server_id)
        if domain is not None and domain.ours:
            self._ours.add(server_id)
        else:
            self._ours.discard(server_id)
        return domain

    async def usage(self) -> list[Usage]:
        records = await self._connection.call(_stats) if self._ours else []
        return [_usage(server_id, record) for server_id, record in records if server_id in self._ours]

    # ---- doing

    def digest(self, server: Server) -> str:
        return domain_digest(server, self._settings)

    async def define(self, server: Server) -> None:
        await self._connection.call(_define, domain_xml(server, self._settings))

    async def start(self, server_id: str) -> None:
        await self._connection.call(_on_domain, server_id, _start)

    async def press_power_button(self, server_id: str) -> None:
        await self._connection.call(_on_domain, server_id, _press_power_button)

    async def cut_power(self, server_id: str) -> None:
        await self._connection.call(_on_domain, server_id, _cut_power)

    async def resume(self, server_id: str) -> None:
        await self._connection.call(_on_domain, server_id, lambda domain: domain.resume())

    async def undefine(self, server_id: str) -> None:
        await self._connection.call(_on_domain, server_id, lambda domain: domain.undefineFlags(UNDEFINE_ALL))

    async def attach(self, server_id: str, disk: Disk) -> None:
        xml = disk_xml(disk)
        live = libvirt.VIR_DOMAIN_AFFECT_LIVE
        await self._connection.call(_on_domain, server_id, lambda domain: domain.attachDeviceFlags(xml, live))

    async def detach(self, server_id: str, export_name: str) -> None:
        await self._connection.call(_on_domain, server_id, lambda domain: _detach(domain, export_name))

    async def reboot(self, server_id: str, *, hard: bool, grace_s: float) -> None:
        heard = self._reboots.setdefault(server_id, asyncio.Event())
        try:
            if not hard:
                await self._connection.call(_on_domain, server_id, _reboot_softly)
                async with asyncio.timeout(grace_s):
                    await heard.wait()
                return
        except TimeoutError:
            pass  # the guest did not obey
        finally:
            self._reboots.pop(server_id, None)
        await self._connection.call(_on_domain, server_id, _reset)


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


# ---- below here: in a thread, with a connection


def _on_domain(connection: Any, server_id: str, act: Callable[[Any], None]) -> None:
    try:
        act(connection.lookupByUUIDString(server_id))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise NotFound("server", server_id) from None
        raise


def _define(connection: Any, xml: str) -> None:
    connection.defineXML(xml)


def _start(domain: Any) -> None:
    if not domain.isActive():
        domain.create()


def _press_power_button(domain: Any) -> None:
    if domain.isActive():
        domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)


def _cut_power(domain: Any) -> None:
    try:
        domain.destroy()
    except libvirt.libvirtError:
        if domain.isActive():
            raise


def _reboot_softly(domain: Any) -> None:
    _must_run(domain)
    domain.reboot(libvirt.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN)


def _reset(domain: Any) -> None:
    _must_run(domain)
    domain.reset()


def _must_run(domain: Any) -> None:
    if not domain.isActive():
        raise Conflict("the server does not run")


def _detach(domain: Any, export_name: str) -> None:
    """By alias: asks and returns at once (by XML, libvirt would wait for the guest)."""
    for disk in _network_disks(domain.XMLDesc(0)):
        if _attribute(disk, "source", "name") == export_name:
            domain.detachDeviceAlias(_attribute(disk, "alias", "name"), libvirt.VIR_DOMAIN_AFFECT_LIVE)
            return


def _list(connection: Any) -> list[Domain]:
    found = []
    for domain in connection.listAllDomains(0):
        try:
            found.append(_read(domain))
        except libvirt.libvirtError as error:  # it went while we looked
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
    return found


def _look(connection: Any, server_id: str) -> Domain | None:
    try:
        return _read(connection.lookupByUUIDString(server_id))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _read(domain: Any) -> Domain:
    mark = _mark(domain, libvirt.VIR_DOMAIN_AFFECT_CURRENT)
    number, reason = domain.state()
    if mark is None:
        return Domain(domain.UUIDString(), _state(number), ours=False)
    active = number not in AT_REST
    held = _mark(domain, libvirt.VIR_DOMAIN_AFFECT_CONFIG) if active else mark
    disks = _network_disks(domain.XMLDesc(0))
    io_error = number == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR
    return Domain(
        server_id=domain.UUIDString(),
        state=_state(number),
        io_error=io_error,
        guest_ended=number == libvirt.VIR_DOMAIN_SHUTOFF and reason == libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN,
        digest=held or "",
        disks=tuple((_attribute(d, "source", "name"), _attribute(d, "target", "dev")) for d in disks),
        failed_disks=tuple(sorted(domain.diskErrors())) if io_error else (),
    )


def _mark(domain: Any, flags: int) -> str | None:
    """The digest in our metadata element; "" for a guest without persistent definition, None when it is not ours."""
    try:
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, flags)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return None
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:
            return ""
        raise
    return ElementTree.fromstring(text).get("digest", "")


def _state(number: int) -> DomainState:
    if number in AT_REST:
        return DomainState.SHUTOFF
    return DomainState.PAUSED if number == libvirt.VIR_DOMAIN_PAUSED else DomainState.RUNNING


def _network_disks(xml: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(xml).findall("./devices/disk[@type='network']")


def _attribute(element: ElementTree.Element, child: str, name: str) -> str:
    found = element.find(child)
    return "" if found is None else found.get(name, "")


def _stats(connection: Any) -> list[tuple[str, dict[str, int]]]:
    """NOWAIT: a guest that is busy with a job must not hold up the samples of all."""
    flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
    return [(domain.UUIDString(), record) for domain, record in connection.getAllDomainStats(USAGE_GROUPS, flags)]


def _usage(server_id: str, record: dict[str, int]) -> Usage:
    """Memory: what the guest uses if its balloon driver tells, else what QEMU holds. libvirt counts as the guest sees it."""

    def total(group: str, what: str) -> int:
        return sum(record.get(f"{group}.{n}.{what}", 0) for n in range(record.get(f"{group}.count", 0)))

    available, unused = record.get("balloon.available", 0), record.get("balloon.unused", 0)
    told = available - unused if available and "balloon.unused" in record else 0
    return Usage(
        server_id=server_id,
        cpu_ns=record.get("cpu.time", 0),
        memory_kib=told or record.get("balloon.rss", 0),
        rx_bytes=total("net", "rx.bytes"),
        tx_bytes=total("net", "tx.bytes"),
        read_bytes=total("block", "rd.bytes"),
        write_bytes=total("block", "wr.bytes"),
    )
