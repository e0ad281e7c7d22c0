"""The libvirt definition of a server. Pure: the same server and settings always give the same text.

q35 with virtio devices only; every device sits on its own PCIe root port, and spare ones wait for hot plug. Serial console
on a unix socket with a log file; a screen only if asked for. Disks that are volumes stop the guest on an I/O error instead of
handing the error to it: the reconciler resumes the guest when the storage is back.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from computed.spec import Disk, Interface, Server

NAMESPACE = "urn:skyrack:server:1"
SERIAL_CHARACTERS_MAX = 20  # of a virtio disk
TITLE_CHARACTERS_MAX = 200
CONFIG_DRIVE_TARGET = "vdz"
FIRST_PARTS = 4  # devices beside disks and interfaces that take a PCIe port: balloon, rng, root disk, config drive


@dataclass(frozen=True)
class XmlSettings:
    """What the node adds to a definition."""

    virt_type: str  # "kvm" or "qemu"
    disks_dir: Path
    console_dir: Path
    vnc: bool = False
    tb_cache_mib: int = 64
    spare_pci_ports: int = 8


def domain_name(server_id: str) -> str:
    return f"skyrack-{server_id}"


def root_disk_path(disks_dir: Path, server_id: str) -> Path:
    return disks_dir / server_id / "root.qcow2"


def config_drive_path(disks_dir: Path, server_id: str) -> Path:
    return disks_dir / server_id / "config.iso"


def console_socket_path(console_dir: Path, server_id: str) -> Path:
    return console_dir / f"{server_id}.sock"


def console_log_path(console_dir: Path, server_id: str) -> Path:
    return console_dir / f"{server_id}.log"


def vnc_socket_path(console_dir: Path, server_id: str) -> Path:
    return console_dir / f"{server_id}.vnc"


def domain_digest(server: Server, settings: XmlSettings) -> str:
    """Names the definition: it is kept in the domain's metadata, so a look tells whether to define anew."""
    return hashlib.sha256(_render(server, settings, "").encode()).hexdigest()[:16]


def domain_xml(server: Server, settings: XmlSettings) -> str:
    """The whole definition. References: libvirt.org/formatdomain.html."""
    return _render(server, settings, domain_digest(server, settings))


def disk_xml(disk: Disk) -> str:
    """One volume, for hot plug."""
    return tostring(_volume(disk), encoding="unicode")


def _render(server: Server, settings: XmlSettings, digest: str) -> str:
    domain = Element("domain", type=settings.virt_type)
    _identity(domain, server, digest)
    _machine(domain, server, settings)
    devices = SubElement(domain, "devices")
    _disks(devices, server, settings)
    for interface in server.interfaces:
        devices.append(_interface(interface))
    _buses(devices, server, settings)
    _console(devices, server, settings)
    balloon = SubElement(devices, "memballoon", model="virtio")
    SubElement(balloon, "stats", period="10")
    SubElement(SubElement(devices, "rng", model="virtio"), "backend", model="random").text = "/dev/urandom"
    indent(domain)
    return tostring(domain, encoding="unicode") + "\n"


def _identity(domain: Element, server: Server, digest: str) -> None:
    SubElement(domain, "name").text = domain_name(server.server_id)
    SubElement(domain, "uuid").text = server.server_id
    title = "".join(c if c.isprintable() else " " for c in server.name)[:TITLE_CHARACTERS_MAX]
    if title:
        SubElement(domain, "title").text = title
    mark = {"xmlns:skyrack": NAMESPACE, "digest": digest}
    SubElement(SubElement(domain, "metadata"), "skyrack:server", mark)


def _machine(domain: Element, server: Server, settings: XmlSettings) -> None:
    SubElement(domain, "memory", unit="MiB").text = str(server.memory_mib)
    SubElement(domain, "vcpu").text = str(server.vcpus)
    _smbios(domain, server.server_id)
    os = SubElement(domain, "os")
    SubElement(os, "type", arch="x86_64", machine="q35").text = "hvm"
    SubElement(os, "boot", dev="hd")
    SubElement(os, "smbios", mode="sysinfo")
    features = SubElement(domain, "features")
    SubElement(features, "acpi")
    SubElement(features, "apic")
    if settings.virt_type == "qemu":
        SubElement(SubElement(features, "tcg"), "tb-cache", unit="MiB").text = str(settings.tb_cache_mib)
    else:
        SubElement(domain, "cpu", mode="host-model", check="partial")
    clock = SubElement(domain, "clock", offset="utc")
    SubElement(clock, "timer", name="hpet", present="no")
    for event, then in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        SubElement(domain, f"on_{event}").text = then


def _smbios(domain: Element, server_id: str) -> None:
    """cloud-init knows an OpenStack guest by this product name."""
    system = SubElement(SubElement(domain, "sysinfo", type="smbios"), "system")
    entries = {
        "manufacturer": "Skyrack", "product": "OpenStack Compute", "serial": server_id, "uuid": server_id,
        "family": "Virtual Machine",
    }  # fmt: skip
    for name, value in entries.items():
        SubElement(system, "entry", name=name).text = value


def _disks(devices: Element, server: Server, settings: XmlSettings) -> None:
    root = SubElement(devices, "disk", type="file", device="disk")
    SubElement(root, "driver", name="qemu", type="qcow2", cache="none", io="threads", discard="unmap")
    SubElement(root, "source", file=str(root_disk_path(settings.disks_dir, server.server_id)))
    SubElement(root, "target", dev="vda", bus="virtio")
    if server.config_drive:
        drive = SubElement(devices, "disk", type="file", device="disk")
        SubElement(drive, "driver", name="qemu", type="raw")
        SubElement(drive, "source", file=str(config_drive_path(settings.disks_dir, server.server_id)))
        SubElement(drive, "target", dev=CONFIG_DRIVE_TARGET, bus="virtio")
        SubElement(drive, "readonly")
    devices.extend(_volume(disk) for disk in sorted(server.disks, key=lambda disk: (len(disk.target), disk.target)))


def _volume(disk: Disk) -> Element:
    element = Element("disk", type="network", device="disk")
    driver = {"name": "qemu", "type": "raw", "cache": "none", "discard": "unmap"}
    SubElement(element, "driver", driver | {"error_policy": "stop", "rerror_policy": "stop"})
    source = SubElement(element, "source", protocol="nbd", name=disk.export_name, tls="yes")
    SubElement(source, "host", name=disk.nbd_host, port=str(disk.nbd_port))
    SubElement(element, "target", dev=disk.target, bus="virtio")
    SubElement(element, "serial").text = disk.volume_id[:SERIAL_CHARACTERS_MAX]
    return element


def _interface(interface: Interface) -> Element:
    """managed='no': QEMU opens the tap that networkd made, and leaves it when the guest ends."""
    element = Element("interface", type="ethernet")
    SubElement(element, "mac", address=interface.mac)
    SubElement(element, "target", dev=interface.device, managed="no")
    SubElement(element, "model", type="virtio")
    if interface.mtu:
        SubElement(element, "mtu", size=str(interface.mtu))
    return element


def _buses(devices: Element, server: Server, settings: XmlSettings) -> None:
    SubElement(devices, "controller", type="usb", model="none")
    SubElement(devices, "controller", type="pci", index="0", model="pcie-root")
    ports = FIRST_PARTS + len(server.interfaces) + len(server.disks) + settings.spare_pci_ports
    for index in range(1, ports + 1):
        SubElement(devices, "controller", type="pci", index=str(index), model="pcie-root-port")


def _console(devices: Element, server: Server, settings: XmlSettings) -> None:
    serial = SubElement(devices, "serial", type="unix")
    SubElement(serial, "source", mode="bind", path=str(console_socket_path(settings.console_dir, server.server_id)))
    SubElement(serial, "log", file=str(console_log_path(settings.console_dir, server.server_id)), append="off")
    SubElement(serial, "target", type="isa-serial", port="0")
    if settings.vnc:
        SubElement(devices, "graphics", type="vnc", socket=str(vnc_socket_path(settings.console_dir, server.server_id)))
        SubElement(SubElement(devices, "video"), "model", type="vga")
    else:
        SubElement(SubElement(devices, "video"), "model", type="none")
