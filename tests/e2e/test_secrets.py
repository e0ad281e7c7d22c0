"""After all that: no secret in any log, in any argument of a program, or in a file that others than root could read."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from skyrack.client.sync import Cloud
from tests.e2e.running_rack import RunningRack
from tests.e2e.tenant import Tenant

FILE_BYTES_MAX = 32 << 20


@dataclass(frozen=True)
class Secret:
    what: str
    text: bytes


@pytest.fixture(scope="module")
def secrets(rack: RunningRack, admin: Cloud, tenant: Tenant) -> list[Secret]:
    token = admin.tokens.create(user=rack.env["SKYRACK_USER"], password=rack.env["SKYRACK_PASSWORD"]).token
    join = admin.nodes.create_join_token("k9", roles=["compute", "edge"]).token
    with pytest.raises(subprocess.CalledProcessError):
        rack.skyrack("server", "list", SKYRACK_PASSWORD="mistyped-" + tenant.password)
    found = {
        "admin's password": rack.env["SKYRACK_PASSWORD"],
        "tenant's password": tenant.password,
        "token": token,
        "join token": join,
    }
    return [Secret(what, text.encode()) for what, text in found.items()] + list(private_keys(rack))


def private_keys(rack: RunningRack) -> Iterator[Secret]:
    """A line from the middle of each key there is on a node."""
    for path in rack.directory.glob("hosts/*/*/**/*.*"):
        if path.suffix in (".key", ".pem") and path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            if b"PRIVATE KEY" in content:
                yield Secret(f"private key in {path.relative_to(rack.directory)}", content.splitlines()[1])


def told(secrets: list[Secret], content: bytes) -> list[str]:
    return [secret.what for secret in secrets if secret.text in content]


def test_there_are_secrets(secrets: list[Secret]) -> None:
    assert len(secrets) > 4 + 5
    assert all(len(secret.text) >= 16 for secret in secrets)


def test_logs(rack: RunningRack, secrets: list[Secret]) -> None:
    logs = [*rack.directory.glob("hosts/*/var/log/**/*.log"), *rack.directory.glob("hosts/*/console.log")]
    assert len(logs) > 8
    assert {str(path): found for path in logs if (found := told(secrets, path.read_bytes()))} == {}


def test_arguments(rack: RunningRack, tenant: Tenant, secrets: list[Secret]) -> None:
    """Of every process on every node, a guest with a volume among them."""
    cloud = tenant.cloud
    volume = cloud.volumes.wait(cloud.volumes.create("secret", size_gib=1), "AVAILABLE", deadline_s=60)
    server = cloud.servers.wait(tenant.create("secret", volumes=[volume]), "ACTIVE", deadline_s=120)
    for node in ("c1", "n1", "k1", "k2", "s1"):
        arguments = rack.exec(node, "sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '; true")
        assert "skyrack" in arguments
        assert told(secrets, arguments.encode()) == [], node
        assert "PRIVATE KEY" not in arguments
    tenant.delete([server])
    cloud.volumes.delete(volume)
    cloud.volumes.wait_gone(volume, deadline_s=60)


def test_files_that_others_may_read(rack: RunningRack, secrets: list[Secret]) -> None:
    found = {}
    for host in rack.directory.glob("hosts/*"):
        for path in open_to_others(host):
            if path.stat().st_size < FILE_BYTES_MAX and (secret := told(secrets, path.read_bytes())):
                found[str(path)] = secret
    assert found == {}


def open_to_others(directory: Path) -> Iterator[Path]:
    """Files that everybody may read, below directories that everybody may enter."""
    for path in directory.iterdir():
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode) and mode & stat.S_IXOTH:
            yield from open_to_others(path)
        elif stat.S_ISREG(mode) and mode & stat.S_IROTH:
            yield path


def test_tokens_and_passwords_are_stored_nowhere(rack: RunningRack, secrets: list[Secret]) -> None:
    """Not even in the controller's database."""
    stored = [path for path in rack.directory.glob("hosts/c1/var/lib/skyrack/**/*") if path.is_file()]
    assert any(path.stat().st_size > 10_000 for path in stored)
    spoken = [secret for secret in secrets if "password" in secret.what or "token" in secret.what]
    assert {str(path): found for path in stored if (found := told(spoken, path.read_bytes()))} == {}
