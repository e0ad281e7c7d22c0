"""`skyrack-controllerd bootstrap`: what must be there before the first start. Running it again changes nothing.

Makes the certificate authorities, this controller's certificates (those for etcd when the configuration names its members), the
project and user "admin" with a random password (written to a file only root reads, nowhere else), and the usual public flavors.
What an earlier version did not make yet is added. A controller that came by a bundle gets certificates only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from controllerd import certificate
from controllerd.app.cloud import Cloud
from controllerd.app.login import Passwords
from controllerd.app.security_group import ensure_default
from controllerd.bundle import is_member
from controllerd.config import ControllerConfig
from controllerd.domain.flavor import Flavor
from controllerd.domain.project import Project
from controllerd.domain.user import User
from controllerd.leadership.commit_log import LocalLog
from controllerd.store import identity
from controllerd.store.database import Database, Tx
from controllerd.store.flavor import FLAVORS
from controllerd.store.identity import PROJECTS, USERS
from daemonkit import tls
from daemonkit.lifecycle import DataDirectory
from daemonkit.runtime import Runtime

# name, vCPUs, memory in MiB, disk in GiB
FLAVORS_AT_FIRST = (("m1.nano", 1, 128, 1), ("m1.tiny", 1, 512, 1), ("m1.small", 1, 2048, 20), ("m1.medium", 2, 4096, 40),
                    ("m1.large", 4, 8192, 80))  # fmt: skip


async def bootstrap(config: ControllerConfig, names: Sequence[str], admin_env: Path, runtime: Runtime) -> str:
    """`names`: further host names and addresses the API certificate is good for. Gives a line for people."""
    directory = DataDirectory(config.data_dir)
    try:
        added = issue_missing(config, names, runtime)
        if not is_member(config) and await _first_rows(config, admin_env, runtime):
            return f"ready; the admin's access is in {admin_env}"
    finally:
        directory.close()
    return f"added: {', '.join(added)}" if added else "this controller is set up already; nothing was changed"


def issue_missing(config: ControllerConfig, names: Sequence[str], runtime: Runtime) -> list[str]:
    """Authorities and this controller's own certificates. Gives what was not there."""
    added = []
    cloud, etcd = certificate.cloud_authority(config, runtime), certificate.etcd_authority(config, runtime)
    for authority, title in ((cloud, "certificate authority"), (etcd, "certificate authority of etcd")):
        if not authority.exists():
            authority.create()
            added.append(title)
    hosts = certificate.hosts(config, names)
    if certificate.missing(config, certificate.NODE_FILES):
        certificate.write(config, certificate.node_files(cloud, config.node, hosts))
        added.append("certificate of this controller")
    if config.cluster.etcd and certificate.missing(config, certificate.ETCD_FILES):
        certificate.write(config, certificate.etcd_files(etcd, config.node, hosts))
        added.append("certificates for etcd")
    return added


async def _first_rows(config: ControllerConfig, admin_env: Path, runtime: Runtime) -> bool:
    """False when there are users already. The password is on disk before it counts: it can't be lost in between."""
    path = config.data_dir / "state.db"
    if identity.has_users(path):  # asked without opening it as ours: it may be a copy of the others' state
        return False
    database = Database(path, LocalLog(), runtime)
    await database.open()
    commits = asyncio.get_running_loop().create_task(database.run())
    passwords = Passwords(Cloud(database, runtime))
    try:
        password = runtime.new_secret(18)
        hashed = await passwords.hash(password)
        tls.write_private(admin_env, _env(config, password).encode())
        await database.write(lambda tx: _insert(tx, hashed))
        return True
    finally:
        commits.cancel()
        await asyncio.wait([commits])
        passwords.close()
        await database.close()


def _insert(tx: Tx, password_hash: str) -> None:
    project = PROJECTS.insert(tx, Project(tx.new_id(), "admin", "Operators of this cloud", True, tx.now))
    user = USERS.insert(tx, User(tx.new_id(), "admin", "", password_hash, True, tx.now))
    identity.grant(tx, user.id, project.id, "admin")
    ensure_default(tx, project.id)
    for name, vcpus, memory_mib, disk_gib in FLAVORS_AT_FIRST:
        FLAVORS.insert(tx, Flavor(tx.new_id(), name, "", vcpus, memory_mib, disk_gib, "", tx.now))


def _env(config: ControllerConfig, password: str) -> str:
    lines = {
        "SKYRACK_ENDPOINT": config.advertise_api or config.api_listen.replace("0.0.0.0:", "127.0.0.1:"),
        "SKYRACK_CA": str(config.tls_dir / "ca.pem"),
        "SKYRACK_USER": "admin",
        "SKYRACK_PASSWORD": password,
        "SKYRACK_PROJECT": "admin",
    }
    return "".join(f"export {name}={value}\n" for name, value in lines.items())
