"""Runs inside a compute node: copies a server's domain, then for each line on standard input makes overlay + define + start of
that copy, says how long it took ({"ms": ...}), and removes it.

The copy differs in name, uuid, disk and serial paths only; its tap is made beforehand, as networkd makes it for computed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from pathlib import Path
from xml.etree import ElementTree

import libvirt

TAP = "tapbench"
SCRATCH = Path("/run/bench")


def copy_of(domain: libvirt.virDomain) -> tuple[str, str, str, str]:
    """(domain XML, its overlay, the base image, the base's format)."""
    root = ElementTree.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    disk = next(d for d in root.iter("disk") if d.find("target").get("dev") == "vda")  # type: ignore[union-attr]
    original = disk.find("source").get("file")  # type: ignore[union-attr]
    told = subprocess.run(["qemu-img", "info", "-U", "--output=json", original], check=True, capture_output=True)
    info = json.loads(told.stdout)
    identity = str(uuid.uuid4())
    root.find("name").text = "bench-raw"  # type: ignore[union-attr]
    root.find("uuid").text = identity  # type: ignore[union-attr]
    for entry in root.iter("entry"):
        if entry.text == domain.UUIDString():
            entry.text = identity
    overlay = str(SCRATCH / "root.qcow2")
    disk.find("source").set("file", overlay)  # type: ignore[union-attr]
    for element in root.iter():
        for path in ("path", "file", "socket"):
            if domain.UUIDString() in element.get(path, ""):
                element.set(path, str(SCRATCH / Path(element.get(path, "")).name))
    for interface in root.iter("interface"):
        interface.find("target").set("dev", TAP)  # type: ignore[union-attr]
    base = info.get("full-backing-filename") or info["backing-filename"]
    return ElementTree.tostring(root, encoding="unicode"), overlay, base, info["backing-filename-format"]


def launch_ms(connection: libvirt.virConnect, xml: str, overlay: str, base: str, base_format: str) -> float:
    start_s = time.perf_counter()
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", base_format, "-b", base, overlay, "1G"]
    subprocess.run(argv, check=True)
    domain = connection.defineXML(xml)
    domain.create()
    assert domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    took_ms = (time.perf_counter() - start_s) * 1000
    domain.destroy()
    domain.undefine()
    Path(overlay).unlink()
    return took_ms


def main() -> None:
    connection = libvirt.open("qemu:///system")
    SCRATCH.mkdir(exist_ok=True)
    subprocess.run(["ip", "tuntap", "add", TAP, "mode", "tap", "vnet_hdr"], check=True)
    copied = copy_of(connection.lookupByUUIDString(sys.argv[1]))
    print(json.dumps({"ms": 0}), flush=True)
    for _line in sys.stdin:
        print(json.dumps({"ms": launch_ms(connection, *copied)}), flush=True)
    subprocess.run(["ip", "link", "delete", TAP], check=True)


if __name__ == "__main__":
    main()
