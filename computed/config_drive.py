"""The config drive: a small ISO 9660 disk labelled config-2, on which a guest finds its metadata without a network.

Layout and field names: docs.openstack.org/nova, "Metadata service formats"; cloud-init reads it as ConfigDrive.
"""

from __future__ import annotations

import io
import json
from typing import Any

from computed.spec import Interface, Metadata, Server

LABEL = "config-2"
VERSIONS = ("latest", "2018-08-27")


def config_drive(server: Server) -> bytes:
    """The whole disk."""
    import pycdlib  # only servers with a config drive pay for it

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=4, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    _directory(iso, "/openstack")
    for version in VERSIONS:
        _directory(iso, f"/openstack/{version}")
        for name, content in config_files(server).items():
            path = f"/openstack/{version}/{name}"
            iso.add_fp(io.BytesIO(content), len(content), path, rr_name=name, joliet_path=path)
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue()


def _directory(iso: Any, path: str) -> None:
    iso.add_directory(path, rr_name=path.rpartition("/")[2], joliet_path=path)


def config_files(server: Server) -> dict[str, bytes]:
    """File name -> content, of one version directory."""
    files = {
        "meta_data.json": _json(meta_data(server)),
        "network_data.json": _json(network_data(server.interfaces)),
        "vendor_data.json": _json(vendor_data(server.metadata)),
    }
    if server.metadata.user_data:
        files["user_data"] = server.metadata.user_data
    return files


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def meta_data(server: Server) -> dict[str, Any]:
    metadata = server.metadata
    return {
        "uuid": server.server_id,
        "name": server.name,
        "hostname": metadata.hostname or server.name,
        "project_id": metadata.project_id,
        "availability_zone": metadata.availability_zone,
        "launch_index": metadata.launch_index,
        "meta": dict(metadata.meta),
        "public_keys": dict(metadata.public_keys),
        "keys": [{"name": name, "type": "ssh", "data": data} for name, data in metadata.public_keys],
    }


def network_data(interfaces: tuple[Interface, ...]) -> dict[str, Any]:
    """Addresses come by DHCP: the drive names the interfaces and their MTU only."""
    links = [
        {"id": i.device, "type": "phy", "ethernet_mac_address": i.mac, "vif_id": i.port_id, "mtu": i.mtu or None}
        for i in interfaces
    ]
    networks = [
        {"id": f"network{n}", "link": i.device, "type": "ipv4_dhcp", "network_id": ""} for n, i in enumerate(interfaces)
    ]
    return {"links": links, "networks": networks, "services": []}


def vendor_data(metadata: Metadata) -> dict[str, Any]:
    """The accounts that security groups let in, as cloud-init's cloud-config (JSON is YAML)."""
    if not metadata.accounts:
        return {}
    users: list[Any] = ["default"]
    for account in metadata.accounts:
        user: dict[str, Any] = {"name": account.name, "ssh_authorized_keys": list(account.public_keys), "shell": "/bin/bash"}
        if account.sudo:
            user["sudo"] = "ALL=(ALL) NOPASSWD:ALL"
        users.append(user)
    return {"cloud-init": "#cloud-config\n" + json.dumps({"users": users}, sort_keys=True)}
