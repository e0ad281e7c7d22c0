"""etcd understands what our drop-in for Debian's unit tells it, together with what docs/install.md puts into its defaults."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.etcd import free_port
from tests.pki import Pki

ROOT = Path(__file__).parents[2]
LIMIT_S = 60


def environment(tmp_path: Path) -> dict[str, str]:
    """What etcd.service would have on a machine that is called c1 and is alone, on 127.0.0.1."""
    dropin = (ROOT / "systemd/etcd.service.d/skyrack.conf").read_text()
    words = [word for line in re.findall(r"^Environment=(.*)$", dropin, re.MULTILINE) for word in line.split()]
    block = re.search(r"```ini\n(ETCD_NAME=.*?)```", (ROOT / "docs/install.md").read_text(), re.DOTALL)
    assert block
    found = dict(word.split("=", 1) for word in [*words, *block[1].split()])
    found = {name: value.strip('"').replace("%d", str(tmp_path / "credentials")) for name, value in found.items()}
    client, peer = free_port(), free_port()
    alone = {
        name: re.sub(r"10\.10\.0\.1\d:2379", f"127.0.0.1:{client}", value.split(",")[0]).replace(
            "10.10.0.11:2380", f"127.0.0.1:{peer}"
        )
        for name, value in found.items()
    }
    return alone | {"ETCD_DATA_DIR": str(tmp_path / "data")}


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    """As LoadCredential would bring them."""
    files = Pki(tmp_path / "pki").node("c1", "controller")
    target = tmp_path / "credentials"
    target.mkdir()
    for source, name in (("ca.pem", "ca.pem"), ("node.pem", "server.pem"), ("node.key", "server.key")):
        shutil.copy(files / source, target / name)
    return target


@pytest.fixture
def member(tmp_path: Path, credentials: Path) -> Iterator[tuple[dict[str, str], Path]]:
    env, log = environment(tmp_path), tmp_path / "log"
    with log.open("wb") as output:
        argv = ["setpriv", "--pdeathsig", "KILL", "--", "/usr/bin/etcd"]
        process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield env, log
    finally:
        process.kill()
        process.wait()


def test_a_member_comes_up(member: tuple[dict[str, str], Path], credentials: Path) -> None:
    env, log = member
    identity = ["--cert", str(credentials / "server.pem"), "--key", str(credentials / "server.key")]
    argv = ["etcdctl", "--endpoints", env["ETCD_ADVERTISE_CLIENT_URLS"], "--cacert", str(credentials / "ca.pem"), *identity]
    argv += ["--command-timeout=2s", "member", "list"]
    deadline = time.monotonic() + LIMIT_S
    while (asked := subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S)).returncode:
        assert time.monotonic() < deadline, asked.stderr + log.read_text()
        time.sleep(0.1)
    assert "started, c1, " in asked.stdout
    told = log.read_text()
    assert "unrecognized" not in told and "unknown" not in told, told
