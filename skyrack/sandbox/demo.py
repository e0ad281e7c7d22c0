"""The story of the first cloud, told on a rack that is up: `skyrack sandbox demo`.

Everything is asked of the public API, as a tenant would; everything is checked from outside: from the client on the
internet, or by logging in to a server. The first thing that isn't so ends the story with an error.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe
from typing import TypeVar

from daemonkit.command import run
from daemonkit.errors import CommandFailed, DeadlineExceeded, SkyrackError
from skyrack.client.cloud import Cloud
from skyrack.client.errors import CloudError
from skyrack.client.floating_ip import FloatingIp
from skyrack.client.network import Network
from skyrack.client.server import Server, ServerNetwork
from skyrack.client.volume import Volume
from skyrack.sandbox.clearing import empty
from skyrack.sandbox.layout import CLIENT
from skyrack.sandbox.rack import Rack
from skyrack.sandbox.up import environment

T = TypeVar("T")

IMAGE = Path(__file__).parents[2] / "images/mini/mini.qcow2"
CIDR = "192.168.10.0/24"
FLAVOR = "m1.nano"
BOOT_LIMIT_S = 180.0  # two guests booting under emulation on a busy machine
CALL_LIMIT_S = 10.0
PROJECT, USER = "acme", "ada"


class NotSo(SkyrackError):
    """Something that the story says is not so."""


@dataclass
class Teller:
    """Prints the story with the time since its beginning."""

    start_s: float

    def chapter(self, title: str) -> None:
        print(f"\n{title}", flush=True)

    def say(self, line: str) -> None:
        print(f"  {time.monotonic() - self.start_s:6.1f} s  {line}", flush=True)


@dataclass(frozen=True)
class Site:
    """What the tenant built."""

    web: Server
    other: Server
    volume: Volume
    address: FloatingIp
    key: Path  # the private key for both servers


def main(rack: Rack) -> int:
    """Exit code for the shell: 0 when everything was as told."""
    teller = Teller(time.monotonic())
    try:
        return asyncio.run(_tell(rack, teller))
    except (CloudError, SkyrackError) as error:
        print(f"\ndemo: NOT SO after {time.monotonic() - teller.start_s:.0f} s: {error}", flush=True)
        return 1


async def _tell(rack: Rack, teller: Teller) -> int:
    teller.chapter("A rack came up inside this machine.")
    env = environment(rack)
    async with Cloud.connect(environ=env) as operator:
        nodes = [node async for node in operator.nodes.list()]
        for node in nodes:
            teller.say(f"{node.name} is {node.state}: {', '.join(node.roles)}")
        password = await _open_account(operator, teller)
    async with Cloud.connect(environ=env, user=USER, password=password, project=PROJECT) as cloud:
        site = await _build(rack, cloud, teller)
        await _visit(rack, cloud, site, teller)
        await _between(rack, site, teller)
        await _closed_port(rack, site, teller)
        await _without_controller(rack, cloud, site, teller)
        _look_around(rack, site, password)
    seconds = time.monotonic() - teller.start_s
    print(f"demo: ok in {seconds:.0f} s, http://{site.address.ip}/ answered 200", flush=True)
    return 0


# ---------------------------------------------------------------- chapters


async def _open_account(operator: Cloud, teller: Teller) -> str:
    """The admin makes a project and its user; a demo told twice begins with a clean project. Gives the password."""
    teller.chapter("The operator opens an account.")
    password = token_urlsafe(12)
    try:
        project = await operator.projects.find(PROJECT)
        user = await operator.users.update(await operator.users.find(USER), password=password)
    except CloudError:
        project = await operator.projects.create(PROJECT, description="made by the demo")
        user = await operator.users.create(USER, password=password)
        await operator.roles.grant(user=user, project=project, role="member")
    teller.say(f"project {project.name}, user {user.name}")
    return password


async def _build(rack: Rack, cloud: Cloud, teller: Teller) -> Site:
    teller.chapter("The tenant uploads an image, builds a network, a firewall and a disk.")
    if await empty(cloud):
        teller.say("cleared away what an earlier demo left")
    image = await cloud.images.create("mini", format="qcow2")
    image = await cloud.images.upload(image, IMAGE)
    teller.say(f"image {image.name}: {image.size_bytes / 1e6:.1f} MB, inspected, sha256 {image.sha256[:12]}")
    network = await _network(cloud, teller)
    group = await cloud.security_groups.create("web", description="the world may ping, log in and fetch pages")
    for port in (22, 80):
        await cloud.security_groups.add_rule(group, protocol="tcp", port_min=port, port_max=port)
    await cloud.security_groups.add_rule(group, protocol="icmp")
    teller.say("security group web: tcp 22 and 80, ping")
    key = await _keypair(rack, cloud)
    volume = await cloud.volumes.create("data", size_gib=1)
    volume = await cloud.volumes.wait(volume, "AVAILABLE", deadline_s=60)
    teller.say(f"volume {volume.name}: {volume.size_gib} GiB on a storage node")

    teller.chapter("Two servers, on different compute nodes.")
    flavor = await cloud.flavors.find(FLAVOR)
    on_it = [ServerNetwork(network_id=network.id)]
    web = await cloud.servers.create(
        "web-1", flavor=flavor, image=image, networks=on_it, security_groups=[group], keypair="demo", volumes=[volume]
    )
    other = await cloud.servers.create(
        "web-2", flavor=flavor, image=image, networks=on_it, security_groups=[group], keypair="demo", different_node_than=web
    )
    launched = []
    for server in (web, other):
        running = await cloud.servers.wait(server, "ACTIVE", deadline_s=BOOT_LIMIT_S)
        launched.append(running)
        steps = ", ".join(f"{step.name} {step.since_accepted_ms} ms" for step in running.timeline)
        teller.say(f"{running.name} at {running.addresses[0].ip}: {steps}")
    address = await cloud.floating_ips.create(await cloud.networks.find("public"), server=web)
    teller.say(f"floating IP {address.ip} leads to web-1")
    return Site(launched[0], launched[1], volume, address, key)


async def _network(cloud: Cloud, teller: Teller) -> Network:
    network = await cloud.networks.create("private")
    subnet = await cloud.subnets.create("private", network=network, cidr=CIDR)
    public = await cloud.networks.find("public")
    router = await cloud.routers.create("edge", external_network=public)
    await cloud.routers.add_subnet(router, subnet)
    teller.say(f"network private {CIDR}, router edge to network public at {router.external_ip}")
    return network


async def _visit(rack: Rack, cloud: Cloud, site: Site, teller: Teller) -> None:
    teller.chapter("Somebody on the internet opens the page.")
    page = await _until(lambda: _fetch(rack, site.address.ip), BOOT_LIMIT_S, "the page answers")
    _so(site.web.name in page, f"the page names {site.web.name}", page)
    teller.say(f"GET http://{site.address.ip}/ answered 200:")
    for line in page.splitlines()[:12]:
        if line.strip():
            print(f"             | {line}", flush=True)
    mounted = await _until(lambda: _ssh(rack, site, "grep vdb /proc/mounts"), BOOT_LIMIT_S, "the volume is mounted")
    teller.say(f"logged in by SSH; the volume is there: {mounted.split(' ro')[0].split(' rw')[0].strip()}")
    volume = await cloud.volumes.get(site.volume)
    _so(volume.state == "IN_USE", "the volume is IN_USE", volume.state)


async def _between(rack: Rack, site: Site, teller: Teller) -> None:
    teller.chapter("The servers talk to each other, across two machines.")
    inside = site.other.addresses[0].ip
    answer = await _until(lambda: _ssh(rack, site, f"ping -c 3 {inside}"), BOOT_LIMIT_S, "web-2 answers web-1")
    _so(" 0% packet loss" in answer, "no ping was lost", answer)
    teller.say(f"web-1 pings web-2 at {inside} over VXLAN: 3 of 3 answered")


async def _closed_port(rack: Rack, site: Site, teller: Teller) -> None:
    teller.chapter("What no rule allows does not pass.")
    await _ssh(rack, site, "httpd -p 81 -h /www; timeout 5 wget -q -O /dev/null http://127.0.0.1:81/")
    teller.say("web-1 now listens on port 81 too, and answers itself there")
    try:
        await _fetch(rack, site.address.ip, port=81, limit_s=3)
    except CommandFailed:
        teller.say(f"http://{site.address.ip}:81/ from the internet: refused by the security group")
        return
    raise NotSo("port 81 answered, though no rule allows it")


async def _without_controller(rack: Rack, cloud: Cloud, site: Site, teller: Teller) -> None:
    teller.chapter("The controller stops. The site does not notice.")
    before = [server async for server in cloud.servers.list()]
    controller = rack.host(rack.controllers()[0].name)
    await controller.stop_unit("controllerd")
    page = await _fetch(rack, site.address.ip)
    _so(site.web.name in page, "the page still answers", page)
    teller.say("controllerd is stopped; the page still answers 200")
    await controller.start_unit("controllerd")
    after = await _until(lambda: _servers(cloud), BOOT_LIMIT_S, "the controller answers again")
    same = {(s.id, s.state, s.addresses) for s in before} == {(s.id, s.state, s.addresses) for s in after}
    _so(same, "the servers are what they were", f"{before}\n{after}")
    teller.say("controllerd is back; every server is what it was")


def _look_around(rack: Rack, site: Site, password: str) -> None:
    name = "" if rack.name == "rack" else f" --name {rack.name}"
    print(f"""
Look around (the rack stays up):
  . .venv/bin/activate
  eval "$(skyrack sandbox env{name})"         as the operator, who also sees `skyrack node list`; or then, as the tenant:
  export SKYRACK_USER={USER} SKYRACK_PASSWORD={password} SKYRACK_PROJECT={PROJECT}
  skyrack server list
  skyrack server show web-1                    where its launch took its time
  skyrack event list                           who did what
  skyrack sandbox status{name}
  skyrack sandbox logs{name} k1 computed
  skyrack sandbox exec{name} internet -- curl http://{site.address.ip}/
  grpcurl -cacert $SKYRACK_CA $SKYRACK_ENDPOINT list     (docs/grpcurl.md)
  ./dev down{name}                             clears everything away
""")


# ---------------------------------------------------------------- what the chapters need


async def _keypair(rack: Rack, cloud: Cloud) -> Path:
    """A fresh key pair; the private half stays in the sandbox's directory, readable by root only."""
    key = rack.directory / "demo-key"
    for path in (key, key.with_suffix(".pub")):
        path.unlink(missing_ok=True)
    await run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "demo", "-f", str(key))
    await cloud.keypairs.create("demo", public_key=key.with_suffix(".pub").read_text())
    return key


async def _servers(cloud: Cloud) -> list[Server]:
    found = [server async for server in cloud.servers.list()]
    if any(server.state == "UNKNOWN" for server in found):
        raise NotSo("a node is not back yet")
    return found


async def _fetch(rack: Rack, ip: str, *, port: int = 80, limit_s: int = 5) -> str:
    """The page, fetched by the client on the internet. Errors: CommandFailed."""
    url = f"http://{ip}:{port}/"
    curl = ("curl", "--silent", "--fail", "--location", "--max-time", str(limit_s), "--noproxy", "*", url)
    return await run(*rack.enter(CLIENT, *curl), timeout_s=limit_s + CALL_LIMIT_S)


async def _ssh(rack: Rack, site: Site, command: str) -> str:
    """Output of a command in web-1, as root, from the client on the internet. Errors: CommandFailed."""
    options = {
        "StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "LogLevel": "ERROR", "BatchMode": "yes",
        "ConnectTimeout": "5", "IdentitiesOnly": "yes",
    }  # fmt: skip
    flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    ssh = ("ssh", *flags, "-i", str(site.key), f"root@{site.address.ip}", shlex.join(["sh", "-c", command]))
    return await run(*rack.enter(CLIENT, *ssh), timeout_s=3 * CALL_LIMIT_S)


async def _until(attempt: Callable[[], Awaitable[T]], limit_s: float, what: str) -> T:
    """The first answer of `attempt`. Errors: NotSo with the last failure."""
    last: Exception | None = None
    try:
        async with asyncio.timeout(limit_s):
            while True:
                try:
                    return await attempt()
                except (CommandFailed, DeadlineExceeded, CloudError, NotSo) as error:
                    last = error
                    await asyncio.sleep(0.2)
    except TimeoutError:
        raise NotSo(f"{what}: not within {limit_s:.0f} s; last: {last}") from None


def _so(true: bool, what: str, seen: object) -> None:
    if not true:
        raise NotSo(f"{what}: it is not so; seen: {seen}")
