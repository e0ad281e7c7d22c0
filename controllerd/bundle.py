"""`skyrack-controllerd bundle`: all that another controller needs, in one file; `bootstrap --bundle` takes it in there.

Whoever has the file can issue certificates of this cloud: it is written for its owner only, and is to be removed after use.
It holds no state: the new controller gets its copy from the leader. Any controller can make one, also while it runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from controllerd import certificate
from controllerd.certificate import Files
from controllerd.config import ControllerConfig
from daemonkit import tls
from daemonkit.errors import ConfigError
from daemonkit.lifecycle import DataDirectory
from daemonkit.runtime import Runtime

KIND = "skyrack controller bundle 1"
_FILES = (*certificate.AUTHORITY_FILES, *certificate.NODE_FILES, *certificate.ETCD_FILES)
# The same on all controllers of a cloud.
_SHARED = (*certificate.AUTHORITY_FILES, "tls/ca.pem", "etcd/ca.pem")


def make_bundle(config: ControllerConfig, node: str, addresses: Sequence[str], runtime: Runtime) -> bytes:
    """`addresses`: under which other machines, etcd members and clients will dial it. Errors: ConfigError."""
    if not config.cluster.etcd:
        raise ConfigError("cluster.etcd is not set: a cloud without etcd has one controller")
    if node == config.node:
        raise ConfigError(f"{node} is this controller; a bundle is for another one")
    if not addresses:
        raise ConfigError("at least one --address: under which others will dial that controller")
    cloud, etcd = certificate.cloud_authority(config, runtime), certificate.etcd_authority(config, runtime)
    hosts = [*addresses, "localhost", "127.0.0.1"]
    files = certificate.authority_files(cloud, etcd)
    files |= certificate.node_files(cloud, node, hosts) | certificate.etcd_files(etcd, node, hosts)
    content = {"kind": KIND, "node": node, "files": {name: data.decode() for name, data in files.items()}}
    return json.dumps(content, indent=1).encode() + b"\n"


def install_bundle(config: ControllerConfig, bundle: bytes) -> str:
    """Gives a line for people. Errors: ConfigError when the bundle is not for this controller; nothing was changed then."""
    node, files = _read(bundle)
    directory = DataDirectory(config.data_dir)
    try:
        _check(config, node, files)
        present = {name: certificate.path(config, name) for name in files}
        if is_member(config) and all(p.exists() and p.read_bytes() == files[name] for name, p in present.items()):
            return "this controller has taken in the bundle already; nothing was changed"
        mark_member(config)
        certificate.write(config, files)
    finally:
        directory.close()
    return f"ready as controller {node}; its state comes from the leader. Remove the bundle: it holds the authorities' keys"


def is_member(config: ControllerConfig) -> bool:
    """Whether this controller has its state from others: it is never of its own making."""
    return (config.data_dir / "member").exists()


def mark_member(config: ControllerConfig) -> None:
    tls.write_private(config.data_dir / "member", f"{config.node}\n".encode())


def _read(bundle: bytes) -> tuple[str, Files]:
    """Errors: ConfigError when it is no bundle, or of another version."""
    try:
        content = json.loads(bundle)
        kind, node, files = content["kind"], content["node"], content["files"]
        if kind == KIND and set(files) == set(_FILES):
            return node, {name: files[name].encode() for name in _FILES}
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    raise ConfigError("this is no bundle of `skyrack-controllerd bundle`, or one of another version")


def _check(config: ControllerConfig, node: str, files: Files) -> None:
    if node != config.node:
        raise ConfigError(f"the bundle is for controller {node}; this one is {config.node} (`node` in its configuration)")
    if not config.cluster.etcd:
        raise ConfigError("cluster.etcd is not set: a controller beside others needs it")
    for host in certificate.advertised(config):
        if host not in certificate.names_in(files["tls/node.pem"]):
            raise ConfigError(f"{host} is advertised, but not in the bundle's certificate: make it with --address {host}")
    for name in _SHARED:
        there = certificate.path(config, name)
        if there.exists() and there.read_bytes() != files[name]:
            raise ConfigError(f"{there} is of another cloud than the bundle; this machine must be emptied first")
