"""The command against a real controller, started as on a machine of its own: what needs no agents."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from skyrack.cli.main import root

START_MAX_S = 60


class Machine:
    """A controller in a directory; `skyrack(...)` is its admin at the keyboard."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "controllerd.toml"
        api, agents, metrics = free_ports(3)
        lines = {
            "node": "c1",
            "data_dir": str(directory / "data"),
            "tls_dir": str(directory / "tls"),
            "api_listen": f"127.0.0.1:{api}",
            "agents_listen": f"127.0.0.1:{agents}",
            "metrics_listen": f"127.0.0.1:{metrics}",
            "advertise_api": f"127.0.0.1:{api}",
            "advertise_agents": f"127.0.0.1:{agents}",
        }
        self.config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()))
        env = directory / "admin.env"
        subprocess.run([*self._controllerd("bootstrap"), "--admin-env", str(env)], check=True, timeout=START_MAX_S)
        words = [word for word in shlex.split(env.read_text()) if "=" in word]
        self.environ: dict[str, str | None] = dict(word.split("=", 1) for word in words)
        self.environ["SKYRACK_TOKEN"] = None

    def _controllerd(self, action: str) -> list[str]:
        return [sys.executable, "-m", "controllerd.daemon", "--config", str(self.config), action]

    def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(self._controllerd("serve"), stdout=log, stderr=log)
        ends_s = time.monotonic() + START_MAX_S
        while self("token", "show").exit_code != 0:
            assert self.process.poll() is None and time.monotonic() < ends_s, (self.directory / "log").read_text()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __call__(self, *words: str, input: str = "") -> Result:
        return CliRunner().invoke(root, list(words), input=input, env=self.environ)

    def ok(self, line: str, input: str = "") -> str:
        result = self(*shlex.split(line), input=input)
        assert result.exit_code == 0, (line, result.stdout, result.stderr, result.exception)
        return result.stdout


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def skyrack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    machine.start()
    yield machine
    machine.kill()


def test_networks_as_in_the_first_steps(skyrack: Machine) -> None:
    skyrack.ok("network create --external public")
    skyrack.ok("subnet create public --network public --subnet-range 203.0.113.0/24")
    skyrack.ok("network create private")
    skyrack.ok("subnet create private --network private --subnet-range 10.0.0.0/24")
    skyrack.ok("router create out --external-gateway public")
    assert "10.0.0.1 on subnet" in skyrack.ok("router add subnet out private")
    skyrack.ok("security group create web")
    skyrack.ok("security group rule create web --protocol tcp --dst-port 80")
    assert "ingress IPv4 tcp 80 from any" in skyrack.ok("security group show web")
    skyrack.ok("port create p --network private --security-group web")
    assert json.loads(skyrack.ok("floating ip create public --port p --json"))["router_id"]
    result = skyrack("router", "remove", "subnet", "out", "private")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    result = skyrack(*shlex.split("subnet create again --network private --subnet-range 10.0.0.0/25"))
    assert (result.exit_code, result.stderr.startswith("error: cidr: ")) == (1, True)


def test_people_and_their_rights(skyrack: Machine) -> None:
    skyrack.ok("project create lab")
    skyrack.ok("user create alice --password-file - --project lab --role reader", input="correct horse battery\n")
    alice = ("--user", "alice", "--project", "lab", "--password-file", "-")
    assert skyrack(*alice, "server", "list", input="correct horse battery\n").exit_code == 0
    refused = skyrack(*alice, "network", "create", "n", input="correct horse battery\n")
    assert (refused.exit_code, "An admin can grant the role" in refused.stderr) == (1, True)
    assert skyrack(*alice, "server", "list", input="wrong\n").exit_code == 1
    skyrack.ok("quota set lab --servers 3 --networks 0")
    skyrack.ok("role add --user alice --project lab member")
    over = skyrack(*alice, "network", "create", "n", input="correct horse battery\n")
    assert "quota exceeded: networks limit 0, in use 0, requested 1. Ask an admin: " in over.stderr


def test_a_node_joins_once(skyrack: Machine) -> None:
    token = skyrack.ok("node token --name k1 --role compute --role edge -f value -c token")
    target = skyrack.directory / "k1"
    join = f"node join - --name k1 --address 127.0.0.1 --tls-dir {target}"
    assert "k1 is a node now: compute, edge" in skyrack.ok(join, input=token)
    assert sorted(os.listdir(target)) == ["ca.pem", "node.key", "node.pem"]  # noqa: PTH208
    assert skyrack(*shlex.split(join), input=token).exit_code == 1
    assert "JOINED" in skyrack.ok("node list")
    assert skyrack.ok("node set k1 --disable -f value -c enabled") == "no\n"
    skyrack.ok("node delete k1")


def test_a_killed_controller_is_an_error_line_and_then_goes_on(skyrack: Machine) -> None:
    """Killed while a volume waits for a storage node; started again, it still knows the volume and can delete it."""
    skyrack.ok("volume create data --size 1")
    skyrack.kill()
    result = skyrack("volume", "list")
    assert (result.exit_code, result.stderr.startswith("error: cannot reach ")) == (3, True)
    skyrack.start()
    late = skyrack("server", "create", "--image", "none", "--flavor", "m1.tiny", "x")
    assert "image 'none' not found. See: skyrack image list" in late.stderr
    skyrack.ok("volume delete --wait data")
    assert skyrack.ok("volume list -f value") == ""
    assert "volume_create" in skyrack.ok("task list") and "volume.create" in skyrack.ok("event list")


def test_what_a_start_looks_at_first(skyrack: Machine) -> None:
    """A copy that did not fit its log, what a crash left of a snapshot, and no metrics wanted."""
    skyrack.kill()
    mark, left = skyrack.directory / "data/state.db.diverged", skyrack.directory / "data/outgoing-it-was-being-sent.db"
    mark.write_text("entry 7 is not the one that this copy has\n")
    refused = subprocess.run(skyrack._controllerd("serve"), capture_output=True, text=True, timeout=START_MAX_S)
    assert refused.returncode == 1 and refused.stderr.startswith("cannot start: the copy of the state does not fit")
    mark.unlink()
    left.write_bytes(b"the state")
    config = skyrack.config.read_text()
    skyrack.config.write_text(re.sub("(?m)^metrics_listen = .*$", 'metrics_listen = ""', config))
    skyrack.start()
    assert not left.exists()


def test_a_cloud_comes_back_from_its_backup(skyrack: Machine) -> None:
    """What was made after the backup is gone, what was there is there; the token given out before is good."""
    skyrack.ok("network create before")
    file, epoch = skyrack.directory / "cloud.backup", int(skyrack.ok("cluster show -f value -c epoch"))
    assert f"{file}: " in skyrack.ok(f"cluster backup {file}")
    skyrack.ok("network create after")
    restore = [*skyrack._controllerd("restore"), str(file)]
    running = subprocess.run(restore, capture_output=True, text=True, timeout=START_MAX_S)
    assert running.returncode == 1 and "in use by another process" in running.stderr
    skyrack.kill()
    there = subprocess.run(restore, capture_output=True, text=True, timeout=START_MAX_S)
    assert there.returncode == 1 and "--replace" in there.stderr
    subprocess.run([*restore, "--replace"], check=True, timeout=START_MAX_S)
    skyrack.start()
    names = skyrack.ok("network list -f value -c name").split()
    assert "before" in names and "after" not in names
    assert int(skyrack.ok("cluster show -f value -c epoch")) > epoch << 16
    skyrack.ok("volume create works --size 1")
    result = skyrack("cluster", "transfer")
    assert result.exit_code == 1 and "one controller" in result.stderr
    assert skyrack("cluster", "verify").exit_code in (0, 1)
