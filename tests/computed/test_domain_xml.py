"""The definition of a domain, word for word. `UPDATE_GOLDEN=1 pytest` writes the files anew; read the difference."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import libvirt
import pytest

from computed.domain_xml import XmlSettings, disk_xml, domain_digest, domain_xml
from computed.spec import Disk, Image, Interface, Server
from skyrack.sandbox.host import Host
from tests.computed.conftest import connect

GOLDEN = Path(__file__).parent / "golden"
SERVER_ID = "6f8a3d52-1b7e-4c7e-9a53-0d2f5f1c9e11"
TCG = XmlSettings("qemu", disks_dir=Path("/d"), console_dir=Path("/c"))

PLAIN = Server(SERVER_ID, "web-1", vcpus=1, memory_mib=128, root_disk_gib=1, image=Image("i", "0" * 64, 1, "qcow2"))
FULL = replace(
    PLAIN,
    name="a <b> & \n c",
    vcpus=4,
    memory_mib=4096,
    config_drive=True,
    interfaces=(
        Interface("p1", "tap11111111-11", "fa:16:3e:00:00:01", 1450),
        Interface("p2", "tap22222222-22", "fa:16:3e:00:00:02", 0),
    ),
    disks=(
        Disk("a2", "22222222-0000-4000-8000-000000000002", "vdc", "10.0.0.2", 10809, "export-2"),
        Disk("a1", "11111111-0000-4000-8000-000000000001", "vdb", "10.0.0.1", 10809, "export-1"),
    ),
)
CASES = {
    "plain": (PLAIN, TCG),
    "full": (FULL, TCG),
    "kvm-with-screen": (PLAIN, replace(TCG, virt_type="kvm", vnc=True)),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    server, settings = CASES[name]
    path, text = GOLDEN / f"{name}.xml", domain_xml(server, settings)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("server", [PLAIN, FULL])
@pytest.mark.parametrize("vnc", [False, True])
def test_libvirt_understands_every_word(host: Host, server: Server, vnc: bool) -> None:
    xml = domain_xml(server, replace(TCG, vnc=vnc))
    domain = connect(host).defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    domain.undefine()


def test_every_device_has_a_port_and_eight_are_spare() -> None:
    devices = ElementTree.fromstring(domain_xml(FULL, TCG)).find("devices")
    assert devices is not None
    ports = len(devices.findall("./controller[@model='pcie-root-port']"))
    users = len(devices.findall("disk")) + len(devices.findall("interface")) + 2  # balloon, rng
    assert ports - users == 8


def test_digest_follows_the_definition_and_is_in_it() -> None:
    assert domain_digest(PLAIN, TCG) in domain_xml(PLAIN, TCG)
    assert domain_digest(PLAIN, TCG) == domain_digest(replace(PLAIN), TCG)
    assert domain_digest(PLAIN, TCG) != domain_digest(replace(PLAIN, memory_mib=256), TCG)


def test_volumes_are_encrypted_and_hold_the_guest_on_errors() -> None:
    disk = ElementTree.fromstring(disk_xml(FULL.disks[0]))
    source, driver = disk.find("source"), disk.find("driver")
    assert source is not None and source.get("tls") == "yes"
    assert driver is not None and (driver.get("error_policy"), driver.get("rerror_policy")) == ("stop", "stop")
