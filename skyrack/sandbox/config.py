"""The configuration files and units of each node: the same files that production has, with the box's addresses."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from skyrack.sandbox import etcd
from skyrack.sandbox.layout import AGENTS_PORT, API_PORT, INTERNET, TRAFFIC, Node
from skyrack.sandbox.unit import Unit

PROGRAMS = Path(sys.prefix) / "bin"
CERTIFICATE = "/etc/skyrack/tls/node.pem"
ADMIN_ENV = "/etc/skyrack/admin.env"
SET_UP = (str(PROGRAMS / "skyrack-controllerd"), "--config", "/etc/skyrack/controllerd.toml")
_PORTS = {"networkd": (7710, 9710), "computed": (7720, 9720), "storaged": (7730, 9730)}
_NBD_PORT = 10809


def program(name: str) -> str:
    """Where this installation has its commands."""
    return str(PROGRAMS / name)


def units(node: Node, controllers: Sequence[Node]) -> list[Unit]:
    """A daemon waits until its node has a certificate: the controller's bootstrap or `skyrack node join` brings it."""
    beside = [etcd.unit(node, controllers)] if node in controllers and len(controllers) > 1 else []
    return beside + [Unit(daemon, _argv(daemon), notify=True, needs=CERTIFICATE) for daemon in node.kind.daemons]


def _argv(daemon: str) -> tuple[str, ...]:
    """controllerd counts refused handshakes by what gRPC says of them."""
    argv = (program(f"skyrack-{daemon}"), "--config", f"/etc/skyrack/{daemon}.toml")
    return ("env", "GRPC_VERBOSITY=INFO", *argv) if daemon == "controllerd" else argv


def files(node: Node, controllers: Sequence[Node]) -> dict[str, str]:
    """File name in /etc/skyrack to text."""
    made = {}
    for daemon in node.kind.daemons:
        keys = _controller(node) if daemon == "controllerd" else _agent(daemon, node, controllers)
        made[f"{daemon}.toml"] = _toml(keys) + _tables(daemon, node, controllers)
    return made


def _controller(node: Node) -> dict[str, object]:
    return {
        "node": node.name,
        "data_dir": "/var/lib/skyrack/controllerd",
        "tls_dir": "/etc/skyrack/tls",
        "api_listen": f"{node.address}:{API_PORT}",
        "agents_listen": f"{node.address}:{AGENTS_PORT}",
        "metrics_listen": f"{node.address}:9700",
        "advertise_api": f"{node.address}:{API_PORT}",
        "advertise_agents": f"{node.address}:{AGENTS_PORT}",
    }


def _agent(daemon: str, node: Node, controllers: Sequence[Node]) -> dict[str, object]:
    port, metrics_port = _PORTS[daemon]
    keys: dict[str, object] = {
        "node": node.name,
        "controllers": [f"{controller.address}:{AGENTS_PORT}" for controller in controllers],
        "data_dir": f"/var/lib/skyrack/{daemon}",
        "tls_dir": "/etc/skyrack/tls",
        "listen": f"{node.address}:{port}",
        "metrics_listen": f"{node.address}:{metrics_port}",
    }
    if daemon == "networkd":
        keys |= {"vtep": node.vtep, "underlay_mtu": TRAFFIC.mtu}
    elif daemon == "computed":
        keys |= {"libvirt_uri": "qemu:///system", "virt_type": "auto"}
    elif daemon == "storaged":
        keys |= {"nbd_listen": f"{node.address}:{_NBD_PORT}"}
    return keys


def _tables(daemon: str, node: Node, controllers: Sequence[Node]) -> str:
    if daemon == "networkd" and "gateway" in node.kind.roles:
        return "\n[gateway]\n" + _toml({"enabled": True, "external_device": INTERNET.device})
    if daemon == "controllerd" and (members := etcd.endpoints(node, controllers)):
        return "\n[cluster]\n" + _toml({"etcd": members, "etcd_tls_dir": etcd.TLS})
    return ""


def _toml(keys: dict[str, object]) -> str:
    """Strings, numbers, booleans and lists of them: JSON's spelling is TOML's."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
