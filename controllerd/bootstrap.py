"""`skyrack-controllerd bootstrap`: what must be there before the first start. Running it again changes nothing.

Makes the certificate authority, this controller's certificate, the project and user "admin" with a random password (written
to a file only root reads, nowhere else), and the usual public flavors.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509

from controllerd.agents.authority import Authority
from controllerd.app.cloud import Cloud
from controllerd.app.login import Passwords
from controllerd.app.security_group import ensure_default
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
        authority = Authority(config.data_dir / "ca", runtime)
        if not authority.exists():
            authority.create()
        if not (config.tls_dir / "node.pem").exists():
            issue_own(config, authority, names)
        if not await _first_rows(config, admin_env, runtime):
            return "this controller is set up already; nothing was changed"
    finally:
        directory.close()
    return f"ready; the admin's access is in {admin_env}"


def issue_own(config: ControllerConfig, authority: Authority, names: Sequence[str]) -> None:
    """This controller's own certificate; also the one the public API shows."""
    key = tls.new_key()
    told = [address.rpartition(":")[0].strip("[]") for address in (config.advertise_api, config.advertise_agents)]
    hosts = [*told, *names, "localhost", "127.0.0.1"]
    pem, _serial = authority.issue(key.public_key(), config.node, ["controller"], _alternatives(config.node, hosts))
    tls.write_private(config.tls_dir / "ca.pem", authority.certificate_pem())
    tls.write_private(config.tls_dir / "node.key", tls.key_pem(key))
    tls.write_private(config.tls_dir / "node.pem", pem)


def _alternatives(node: str, hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    entries: list[x509.GeneralName] = [x509.DNSName(node)]
    for host in dict.fromkeys(h for h in hosts if h and h != node):
        try:
            entries.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            entries.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(entries)


async def _first_rows(config: ControllerConfig, admin_env: Path, runtime: Runtime) -> bool:
    """False when there are users already. The password is on disk before it counts: it can't be lost in between."""
    database = Database(config.data_dir / "state.db", LocalLog(), runtime)
    await database.open()
    commits = asyncio.get_running_loop().create_task(database.run())
    passwords = Passwords(Cloud(database, runtime))
    try:
        if await database.read(lambda tx: tx.value("SELECT 1 FROM user LIMIT 1")):
            return False
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
