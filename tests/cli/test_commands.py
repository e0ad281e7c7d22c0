"""The nouns and verbs, their output, their errors and their exit codes."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from daemonkit import errors as sent
from daemonkit import tls
from skyrack.cli.main import NOUNS, root
from skyrack.v1 import (
    event_pb2,
    flavor_pb2,
    image_pb2,
    network_pb2,
    node_pb2,
    router_pb2,
    security_group_pb2,
    server_pb2,
    task_pb2,
    volume_pb2,
)
from tests.cli.conftest import Command
from tests.client.fake_api import PASSWORD, FakeApi, FakeCloud


def rack(fake: FakeCloud) -> None:
    """A project with a little of everything; ids end in 1, 2, 3... in this order."""
    fake.put(flavor_pb2.Flavor(name="m1.tiny", vcpus=1, memory_mib=64, disk_gib=1))
    fake.put(image_pb2.Image(name="mini", state=3, format="qcow2", size_bytes=16 << 20))
    fake.put(network_pb2.Network(name="private", mtu=1450))
    fake.put(volume_pb2.Volume(name="data", state=2, size_gib=1))
    server = fake.put(server_pb2.Server(name="web-0", state=2, flavor_name="m1.tiny", vcpus=1, memory_mib=64, disk_gib=1))
    server.addresses.add(network_name="private", ip="10.0.0.5", floating_ip="203.0.113.7")
    for name, ms in (("accepted", 0), ("scheduled", 4), ("running", 180)):
        server.timeline.add(name=name, since_accepted_ms=ms)


# What can be listed of all projects, and its noun.
LISTED: dict[Any, str] = {
    image_pb2.Image: "image",
    network_pb2.Network: "network",
    network_pb2.Subnet: "subnet",
    network_pb2.Port: "port",
    router_pb2.Router: "router",
    router_pb2.FloatingIp: "floating ip",
    security_group_pb2.SecurityGroup: "security group",
    server_pb2.Server: "server",
    task_pb2.TaskInfo: "task",
    volume_pb2.Volume: "volume",
}
ID = "00000000-0000-0000-0000-00000000000"


async def test_server_list(skyrack: Command, fake: FakeCloud) -> None:
    rack(fake)
    assert await skyrack.ok("server", "list") == (
        "ID                                    Name   Status  Networks                       Flavor\n"
        f"{ID}5  web-0  ACTIVE  private=10.0.0.5, 203.0.113.7  m1.tiny\n"
    )
    assert await skyrack.ok("server", "list", "-f", "value", "-c", "id", "-c", "Status") == f"{ID}5 ACTIVE\n"
    rows = json.loads(await skyrack.ok("server", "list", "--json"))
    assert (rows[0]["name"], rows[0]["addresses"][0]["floating_ip"]) == ("web-0", "203.0.113.7")
    assert (await skyrack("server", "list", "--status", "HAPPY")).exit_code == 2


async def test_server_show_tells_the_timeline(skyrack: Command, fake: FakeCloud) -> None:
    rack(fake)
    shown = await skyrack.ok("server", "show", "web-0")
    assert (
        "timeline      accepted       0 ms\n"
        "              scheduled      4 ms\n"
        "              running      180 ms\n"
    ) in shown  # fmt: skip
    assert "created_at    2026-05-31 12:00:00Z\n" in shown
    row = fake.rows["Server"][f"{ID}5"]
    row.fault.reason, row.fault.message = "NO_VALID_HOST", "no node fits"
    row.fault.details.append("memory: 2 of 3 nodes; closest miss k1 lacks 256 MiB")
    shown = await skyrack.ok("server", "show", f"{ID}5")
    assert "fault         NO_VALID_HOST: no node fits\n                memory: 2 of 3 nodes; closest" in shown


async def test_server_create_and_wait(skyrack: Command, fake: FakeCloud, tmp_path: Path) -> None:
    rack(fake)
    active = server_pb2.Server(state=server_pb2.SERVER_STATE_ACTIVE)
    active.timeline.add(name="running", since_accepted_ms=212)
    fake.server_story = [server_pb2.Server(), active]
    (tmp_path / "init").write_bytes(b"#!/bin/sh\n\xff")
    words = "server create --image mini --flavor m1.tiny --network private --key-name k --volume data --wait web-1"
    nic = ["--nic", f"net-id={ID}3,v4-fixed-ip=10.0.0.9", "--property", "a=b=c", "--user-data", str(tmp_path / "init")]
    result = await skyrack(*words.split(), *nic)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == (
        "server web-1: BUILD\nserver web-1: running after 212 ms\nserver web-1: ACTIVE\n"
    )  # fmt: skip
    request = next(request for method, request, _metadata in fake.calls if method == "CreateServer")
    assert (request.flavor_id, request.image_id, request.volume_ids) == (f"{ID}1", f"{ID}2", [f"{ID}4"])
    assert [(n.network_id, n.fixed_ip) for n in request.networks] == [(f"{ID}3", ""), (f"{ID}3", "10.0.0.9")]
    assert (request.user_data, request.metadata["a"], request.keypair_name) == (b"#!/bin/sh\n\xff", "b=c", "k")


async def test_server_create_that_fails(skyrack: Command, fake: FakeCloud) -> None:
    rack(fake)
    failed = server_pb2.Server(state=server_pb2.SERVER_STATE_ERROR)
    failed.fault.reason, failed.fault.message = "NO_VALID_HOST", "no node fits"
    failed.fault.details.append("memory: 2 of 2 nodes")
    fake.server_story = [failed]
    result = await skyrack("server", "create", "--image", "mini", "--flavor", "m1.tiny", "--wait", "web-1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == (
        f"error: server web-1 went to ERROR: NO_VALID_HOST: no node fits (memory: 2 of 2 nodes). See: skyrack server show {ID}6"
    )


async def test_quota_error_says_what_to_do(skyrack: Command, fake: FakeCloud) -> None:
    rack(fake)
    fake.limits["servers"] = 1
    result = await skyrack("server", "create", "--image", "mini", "--flavor", "m1.tiny", "web-1")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: quota exceeded: servers limit 1, in use 1, requested 1. Ask an admin: skyrack quota set --servers N PROJECT\n",
    )


async def test_server_verbs(skyrack: Command, fake: FakeCloud) -> None:
    rack(fake)
    assert "STOPPED" in await skyrack.ok("server", "stop", "web-0", "--wait")
    result = await skyrack("server", "reboot", "web-0")
    assert (result.exit_code, result.stderr) == (1, "error: server web-0 is not ACTIVE\n")
    await skyrack.ok("server", "start", "web-0")
    await skyrack.ok("server", "reboot", "--hard", "web-0")
    assert fake.calls[-1][1].hard
    await skyrack.ok("server", "set", "web-0", "--name", "web-9", "--property", "tier=front")
    assert fake.calls[-1][1].metadata["tier"] == "front"
    assert "/dev/vdb" in await skyrack.ok("server", "add", "volume", "web-9", "data", "--wait")
    await skyrack.ok("server", "remove", "volume", "web-9", "data", "--wait")
    assert json.loads(await skyrack.ok("server", "delete", "--wait", "--json", "web-9")) == {"deleted": [f"{ID}5"]}
    assert not fake.rows["Server"]


async def test_console_log(skyrack: Command, fake: FakeCloud) -> None:
    rack(fake)
    fake.console = b"boot\n\x1b[31mred\x1b[0m\nlogin: "
    assert await skyrack.ok("server", "console", "log", "web-0") == "boot\nred\nlogin: \n"
    assert await skyrack.ok("console", "log", "show", "--lines", "1", "web-0") == "login: \n"
    assert "\x1b[31m" in await skyrack.ok("server", "console", "log", "--raw", "web-0")


async def test_floating_ips(skyrack: Command, fake: FakeCloud) -> None:
    rack(fake)
    await skyrack.ok("network", "create", "--external", "internet")
    await skyrack.ok("floating", "ip", "create", "internet")
    await skyrack.ok("server", "add", "floating", "ip", "web-0", "203.0.113.7")
    assert fake.calls[-1][1].server_id == f"{ID}5"
    await skyrack.ok("server", "remove", "floating", "ip", "web-0", "203.0.113.7")
    assert fake.calls[-1][1].HasField("port_id") and fake.calls[-1][1].port_id == ""
    assert (await skyrack("floating", "ip", "set", "203.0.113.7")).exit_code == 2
    await skyrack.ok("floating-ip", "associate", "203.0.113.7", "--server", "web-0")
    assert "203.0.113.7" in await skyrack.ok("floating", "ip", "list")
    await skyrack.ok("floating", "ip", "unset", "--port", "203.0.113.7")
    await skyrack.ok("floating", "ip", "delete", "203.0.113.7")


async def test_networks(skyrack: Command, fake: FakeCloud) -> None:
    await skyrack.ok("network", "create", "private")
    words = "subnet create s --network private --subnet-range 10.0.0.0/24 --gateway none --no-dhcp --dns-nameserver 9.9.9.9"
    pool = "--allocation-pool start=10.0.0.5,end=10.0.0.9 --host-route destination=10.1.0.0/16,gateway=10.0.0.2"
    assert "10.0.0.5-10.0.0.9" in await skyrack.ok(*words.split(), *pool.split())
    assert fake.calls[-1][1].gateway_ip == "" and fake.calls[-1][1].HasField("gateway_ip")
    await skyrack.ok("router", "create", "r", "--external-gateway", "private")
    assert "10.0.0.1 on subnet" in await skyrack.ok("router", "add", "subnet", "r", "s")
    await skyrack.ok("router", "remove", "subnet", "r", "s")
    await skyrack.ok("router", "set", "r", "--route", "destination=10.2.0.0/16,gateway=10.0.0.3", "--disable-snat")
    await skyrack.ok("router", "unset", "r", "--external-gateway")
    assert fake.calls[-1][1].HasField("external_network_id")
    await skyrack.ok("port", "create", "p", "--network", "private", "--fixed-ip", "subnet=s,ip-address=10.0.0.8")
    assert "10.0.0.8" in await skyrack.ok("port", "list", "--network", "private")
    await skyrack.ok("port", "set", "p", "--no-security-group")
    for noun, name in (("port", "p"), ("router", "r"), ("subnet", "s"), ("network", "private")):
        assert name in await skyrack.ok(noun, "show", name)
        await skyrack.ok(noun, "delete", name)


@pytest.mark.parametrize("message", LISTED, ids=lambda message: message.DESCRIPTOR.name)
async def test_lists_of_all_projects(skyrack: Command, fake: FakeCloud, message: Any) -> None:
    for project in ("p1", "p2"):
        fake.put(message(project_id=project))
    words = (*LISTED[message].split(), "list")
    refused = await skyrack(*words, "--all-projects")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: all_projects needs the role admin; alice has member")
    fake.role = "admin"
    own = await skyrack.ok(*words)
    assert (f"{ID}1" in own, f"{ID}2" in own, "Project" in own) == (True, False, False)
    assert await skyrack.ok(*words, "--all-projects", "-c", "ID", "-c", "Project") == (
        f"ID{' ' * 36}Project\n{ID}1  p1\n{ID}2  p2\n"
    )


async def test_security_groups(skyrack: Command, fake: FakeCloud) -> None:
    await skyrack.ok("security", "group", "create", "web", "--account", "name=alice,key=k1+k2,sudo=yes")
    assert fake.calls[-1][1].accounts[0].keypair_names == ["k1", "k2"]
    await skyrack.ok("security-group-rule", "create", "web", "--protocol", "TCP", "--dst-port", "80")
    await skyrack.ok("security", "group", "rule", "create", "web", "--protocol", "icmp", "--egress", "--icmp-type", "8")
    await skyrack.ok("security", "group", "rule", "create", "web", "--remote-group", "web")
    assert await skyrack.ok("security", "group", "rule", "list", "web", "-c", "Direction", "-c", "Ports", "-c", "Remote") == (
        f"Direction  Ports   Remote\ningress    80      any\negress     type 8  any\ningress    any     group {ID}1\n"
    )
    rules = json.loads(await skyrack.ok("security", "group", "show", "web", "--json"))["rules"]
    await skyrack.ok("security", "group", "rule", "delete", rules[0]["id"])
    assert "ingress IPv4 tcp 80" not in await skyrack.ok("security", "group", "show", "web")
    assert (await skyrack("security", "group", "rule", "create", "web", "--dst-port", "90:80")).exit_code == 2


async def test_images(skyrack: Command, fake: FakeCloud, tmp_path: Path) -> None:
    path, back = tmp_path / "mini.qcow2", tmp_path / "back"
    path.write_bytes(b"QFI\xfb" + bytes(3 << 20))
    assert "ACTIVE" in await skyrack.ok("image", "create", "mini", "--file", str(path))
    assert next(request for method, request, _m in fake.calls if method == "CreateImage").format == "qcow2"
    assert "3.0 MiB" in await skyrack.ok("image", "list")
    saved = json.loads(await skyrack.ok("image", "save", "mini", "--file", str(back), "--json"))
    assert (saved["size_bytes"], back.read_bytes()) == (path.stat().st_size, path.read_bytes())
    await skyrack.ok("image", "set", "mini", "--public", "--min-disk", "2")
    await skyrack.ok("image", "delete", "mini")


async def test_refused_image_leaves_nothing(skyrack: Command, fake: FakeCloud, tmp_path: Path) -> None:
    path = tmp_path / "fake.qcow2"
    path.write_bytes(bytes(100))
    fake.before["chunk"] = [sent.InvalidArgument("chunk", "not a qcow2 image")]
    result = await skyrack("image", "create", "mini", "--disk-format", "qcow2", "--file", str(path))
    assert (result.exit_code, result.stderr) == (1, "error: chunk: not a qcow2 image\n")
    assert not fake.rows["Image"]


async def test_keypairs(skyrack: Command, fake: FakeCloud, tmp_path: Path) -> None:
    private = tmp_path / "k.pem"
    await skyrack.ok("keypair", "create", "k", "--private-key", str(private))
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    key = serialization.load_ssh_private_key(private.read_bytes(), None)
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    assert fake.calls[-1][1].public_key == f"{line.decode()} k"
    result = await skyrack("keypair", "create", "k", "--private-key", str(private))
    assert (result.exit_code, result.stderr) == (1, f"error: {private}: File exists\n")
    assert (await skyrack.ok("keypair", "create", "p")).startswith("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    (tmp_path / "k.pub").write_text("ssh-ed25519 AAAA me\n")
    await skyrack.ok("keypair", "create", "q", "--public-key", str(tmp_path / "k.pub"))
    assert fake.calls[-1][1].public_key == "ssh-ed25519 AAAA me"


async def test_identity(skyrack: Command, fake: FakeCloud, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("new secret\nrest")
    await skyrack.ok("project", "create", "lab")
    words = ["user", "create", "bob", "--password-file", str(tmp_path / "password"), "--project", "lab", "--role", "member"]
    assert "new secret" not in await skyrack.ok(*words)
    create = next(request for method, request, _m in fake.calls if method == "CreateUser")
    assert create.password == "new secret"
    assert f"member  {ID}2" in await skyrack.ok("role", "list", "--user", "bob")
    await skyrack.ok("role", "remove", "--user", "bob", "--project", "lab", "member")
    await skyrack.ok("user", "set", "bob", "--password-file", "-", input="from stdin\n")
    assert fake.calls[-1][1].password == "from stdin"
    assert (await skyrack("user", "create", "eve")).exit_code == 2
    assert (await skyrack("user", "create", "eve", "--password", "x")).exit_code == 2


async def test_tokens(skyrack: Command, fake: FakeCloud) -> None:
    assert (await skyrack("token", "revoke")).exit_code == 2
    token = (await skyrack.ok("token", "issue", "-f", "value", "-c", "token")).strip()
    assert token in fake.tokens
    skyrack.environ |= {"SKYRACK_USER": None, "SKYRACK_PASSWORD": None, "SKYRACK_TOKEN": token}
    assert "alice" in await skyrack.ok("token", "show")
    await skyrack.ok("token", "revoke")
    result = await skyrack("token", "show")
    assert (result.exit_code, fake.methods().count("CreateToken")) == (1, 1)


async def test_password_from_file_and_none_at_all(skyrack: Command, tmp_path: Path) -> None:
    skyrack.environ["SKYRACK_PASSWORD"] = None
    result = await skyrack("server", "list")
    assert (result.exit_code, "give --password-file" in result.stderr) == (2, True)
    (tmp_path / "password").write_text(PASSWORD + "\n")
    await skyrack.ok("--password-file", str(tmp_path / "password"), "server", "list")
    assert (await skyrack("--password-file", "/nowhere", "server", "list")).exit_code == 2


async def test_nodes(skyrack: Command, fake: FakeCloud) -> None:
    row = fake.put(node_pb2.Node(name="k1", roles=["compute", "edge"], state=2, enabled=True, vcpus=8, vcpus_claimed=2))
    agent = row.agents.add(kind="computed", connected=True, version="0.1.0", address="10.99.0.21:7720")
    assert await skyrack.ok("node", "list", "-f", "value", "-c", "Name", "-c", "Clock") == "k1 \n"
    agent.clock_offset_s = -3600.2
    row.agents.add(kind="networkd", clock_offset_s=4.0)
    assert await skyrack.ok("node", "list") == (
        "Name  Roles          Status  Enabled  vCPUs  RAM MiB  Disk GiB  Servers  Clock\n"
        "k1    compute, edge  UP      yes      2/8    0/0      0/0       0        -3600.2 s\n"
    )
    assert "computed connected 0.1.0 10.99.0.21:7720 clock -3600.2 s" in await skyrack.ok("node", "show", "k1")
    assert "no" in await skyrack.ok("node", "set", "k1", "--disable", "-f", "value", "-c", "enabled")
    assert (await skyrack("node", "set", "k1")).exit_code == 2
    await skyrack.ok("node", "token", "--name", "k2", "--role", "compute", "--role", "edge")
    assert fake.join_roles["secret"] == ("k2", ["compute", "edge"])
    await skyrack.ok("node", "delete", "k1")


def invitation(api: FakeApi, **changes: Any) -> str:
    whole = {"secret": "secret", "endpoints": [api.address], "ca": api.ca.read_text(), **changes}
    return base64.urlsafe_b64encode(json.dumps(whole).encode()).decode().rstrip("=")


async def test_node_join(skyrack: Command, fake: FakeCloud, api: FakeApi, tmp_path: Path) -> None:
    fake.join_roles["secret"] = ("k2", ["compute", "edge"])
    skyrack.environ = dict.fromkeys(skyrack.environ)
    target = tmp_path / "etc" / "tls"
    words = ["node", "join", "-", "--name", "k2", "--address", "127.0.0.2", "--tls-dir", str(target)]
    told = await skyrack.ok(*words, input=invitation(api) + "\n")
    assert told == "k2 is a node now: compute, edge. Controllers for its agents: 10.99.0.11:7701\n"
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in target.iterdir()} == {
        "ca.pem": 0o600, "node.pem": 0o600, "node.key": 0o600,
    }  # fmt: skip
    assert tls.identity_of((target / "node.pem").read_bytes()).node == "k2"
    csr = x509.load_pem_x509_csr(fake.calls[-1][1].csr_pem)
    names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert (names.get_values_for_type(x509.DNSName), len(names)) == (["k2"], 2)
    key = serialization.load_pem_private_key((target / "node.key").read_bytes(), None)
    assert key.public_key() == csr.public_key()
    before = (target / "node.key").read_bytes()
    again = await skyrack(*words, input=invitation(api))
    assert (again.exit_code, (target / "node.key").read_bytes()) == (1, before)
    assert again.stderr.endswith("Make a new one on a controller: skyrack node token\n")


@pytest.mark.parametrize("token", ["nonsense", "", "e30", base64.urlsafe_b64encode(b"[1]").decode()])
async def test_node_join_with_something_else(skyrack: Command, tmp_path: Path, token: str) -> None:
    result = await skyrack("node", "join", token, "--address", "127.0.0.2", "--tls-dir", str(tmp_path / "tls"))
    assert (result.exit_code, "that is not a join token" in result.stderr) == (2, True)
    assert not (tmp_path / "tls").exists()


async def test_tasks_and_events(skyrack: Command, fake: FakeCloud) -> None:
    task = fake.put(task_pb2.TaskInfo(kind="server_create", resource_kind="server", resource_id="s1", state=4))
    task.steps.add(name="place", state="done")
    task.steps.add(name="start", state="undone")
    task.fault.reason, task.fault.message = "FAILED", "no such image"
    assert "1/2" in await skyrack.ok("task", "list")
    shown = await skyrack.ok("task", "show", task.id)
    assert "place done" in shown and "FAILED: no such image" in shown
    for number in range(5):
        fake.events.append(event_pb2.Event(seq=number + 1, kind="server.create", message=f"m{number}\x1b[2J\nx"))
    shown = await skyrack.ok("event", "list", "--limit", "3")
    assert [line.split()[3] for line in shown.splitlines()[1:]] == ["m4", "m3", "m2"]
    assert "\x1b" not in shown and fake.methods().count("ListEvents") == 2


async def test_quota_and_usage(skyrack: Command, fake: FakeCloud) -> None:
    await skyrack.ok("project", "create", "lab")
    assert await skyrack.ok("quota", "show", "lab") == "Resource  Limit  In use\nservers   10     1\n"
    assert "unlimited" in await skyrack.ok("quota", "set", "lab", "--servers", "-1")
    assert (await skyrack("quota", "set", "lab")).exit_code == 2
    assert "web-1 (s1): 1.50 h, 12.2 CPU s, 1.5 MB in" in await skyrack.ok("usage", "show", "--start", "2026-05-01")


async def test_flavors_and_volumes(skyrack: Command, fake: FakeCloud) -> None:
    await skyrack.ok("flavor", "create", "m1.tiny", "--ram", "64", "--public")
    assert "m1.tiny  1      64       1         no" in await skyrack.ok("flavor", "list")
    await skyrack.ok("flavor", "set", "m1.tiny", "--vcpus", "2")
    await skyrack.ok("flavor", "delete", "m1.tiny")
    await skyrack.ok("volume", "create", "data", "--size", "2")
    assert "CREATING  2" in await skyrack.ok("volume", "list")
    await skyrack.ok("volume", "set", "data", "--name", "store")
    await skyrack.ok("volume", "delete", "--wait", "store")


async def test_exit_codes(skyrack: Command, fake: FakeCloud, api: FakeApi) -> None:
    twin = [fake.put(network_pb2.Network(name="twin")).id for _ in range(2)]
    result = await skyrack("network", "show", "twin")
    assert (result.exit_code, result.stderr) == (
        1,
        f"error: several are called 'twin': {twin[0]}, {twin[1]}. Name one by its id\n",
    )
    result = await skyrack("server", "show", "no\x1b[31mbody")
    assert (result.exit_code, result.stderr) == (1, "error: server 'no\\x1b[31mbody' not found. See: skyrack server list\n")
    assert (await skyrack("server", "sing")).exit_code == 2
    assert (await skyrack("server", "list", "-c", "Size")).exit_code == 2
    await api.stop()
    result = await skyrack("server", "list")
    assert result.exit_code == 3
    assert result.stderr.startswith(f"error: cannot reach {api.address}: ") and result.stderr.count("\n") == 1
    for path in ("/nowhere", __file__ + "c"):
        skyrack.environ["SKYRACK_CA"] = path
        assert (await skyrack("server", "list")).exit_code == 2


async def test_without_settings(skyrack: Command) -> None:
    skyrack.environ = dict.fromkeys(skyrack.environ)
    result = await skyrack("server", "list")
    assert (result.exit_code, result.stderr.startswith("error: no endpoint given. Set SKYRACK_ENDPOINT")) == (2, True)
    assert (await skyrack.ok("version")).startswith("skyrack 0.1.0")


@pytest.mark.parametrize("noun", sorted(set(NOUNS) - {"sandbox"}))
def test_every_command_has_help_and_json(noun: str) -> None:
    import click

    def walk(command: click.Command, path: str) -> None:
        assert command.help, path
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                walk(child, f"{path} {name}")
        else:
            assert any("--json" in parameter.opts for parameter in command.params), path
            assert not any(option in ("--password", "--secret") for p in command.params for option in p.opts), path

    command = root.get_command(click.Context(root), noun)
    assert command is not None
    walk(command, noun)


async def test_events_follow_as_a_program(skyrack: Command, fake: FakeCloud) -> None:
    """In a process of its own: lines come as events happen, Ctrl-C ends it."""
    environ = os.environ | {name: value for name, value in skyrack.environ.items() if value}
    words = ("-m", "skyrack.cli.main", "event", "list", "--follow", "--json")
    program = ("env", "--default-signal=INT", sys.executable)  # whoever started us may have ignored it
    process = await asyncio.create_subprocess_exec(*program, *words, env=environ, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(60):
            while "WatchEvents" not in fake.methods():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            fake.tell("server.running", "web-1 runs")
            assert process.stdout is not None
            assert json.loads(await process.stdout.readline())["message"] == "web-1 runs"
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_help_imports_no_grpc() -> None:
    code = "import sys, skyrack.cli.main as m; m.main(['--help'])"
    check = f"import atexit, sys; atexit.register(lambda: print('grpc' in sys.modules)); {code}"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", check, stdout=asyncio.subprocess.PIPE)
    shown, _nothing = await process.communicate()
    assert shown.decode().splitlines()[-1] == "False"
