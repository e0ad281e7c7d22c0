"""A tenant with all but servers: project, user, image, network behind a router, security group, key."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyrack.client.errors import NotFound
from skyrack.client.flavor import Flavor
from skyrack.client.image import Image
from skyrack.client.keypair import Keypair
from skyrack.client.network import Network
from skyrack.client.project import Project
from skyrack.client.router import Router
from skyrack.client.security_group import SecurityGroup, SecurityGroupAccount
from skyrack.client.server import Server, ServerNetwork
from skyrack.client.subnet import Subnet
from skyrack.client.sync import Cloud
from skyrack.sandbox.clearing import empty
from tests.e2e.running_rack import RunningRack

MINI = Path(__file__).parents[2] / "images/mini/mini.qcow2"


def open_account(rack: RunningRack, admin: Cloud, name: str) -> tuple[Project, str, Cloud]:
    """A member of a project of that name, both empty: the project, the user's password, and the user's cloud."""
    password = secrets.token_urlsafe(12)
    try:
        project = admin.projects.find(name)
        admin.users.update(admin.users.find(name), password=password)
    except NotFound:
        project = admin.projects.create(name)
        user = admin.users.create(name, password=password)
        admin.roles.grant(user=user, project=project, role="member")
    cloud = Cloud.connect(environ=rack.env, user=name, password=password, project=name)
    cloud.run(empty(cloud._inner))
    return project, password, cloud


@dataclass(frozen=True)
class Tenant:
    cloud: Cloud
    project: Project
    password: str
    image: Image
    flavor: Flavor
    network: Network
    subnet: Subnet
    router: Router
    group: SecurityGroup
    keypair: Keypair
    key: Path
    """The private half."""

    def create(self, name: str, **more: Any) -> Server:
        """A server on the tenant's network, in BUILD."""
        on_it = [ServerNetwork(network_id=self.network.id)]
        more = {"security_groups": [self.group], "keypair": self.keypair.name, "networks": on_it, **more}
        server: Server = self.cloud.servers.create(name, flavor=self.flavor, image=self.image, **more)
        return server

    def delete(self, servers: Sequence[Server]) -> None:
        for server in servers:
            self.cloud.servers.delete(server)
        for server in servers:
            self.cloud.servers.wait_gone(server, deadline_s=120)


def settle(rack: RunningRack, admin: Cloud, directory: Path) -> Tenant:
    """The world may ping it, log in and fetch pages; account `ops` comes with the group."""
    project, password, cloud = open_account(rack, admin, "tenant")
    image = cloud.images.upload(cloud.images.create("mini", format="qcow2"), MINI)
    network = cloud.networks.create("private")
    subnet = cloud.subnets.create("private", network=network, cidr="192.168.10.0/24")
    router = cloud.routers.create("edge", external_network=cloud.networks.find("public"))
    router = cloud.routers.wait(cloud.routers.add_subnet(router, subnet), "ACTIVE", deadline_s=60)
    key = directory / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "e2e", "-f", str(key)], check=True)
    keypair = cloud.keypairs.create("mine", public_key=key.with_suffix(".pub").read_text())
    ops = SecurityGroupAccount("ops", keypair_names=("mine",), sudo=True)
    group = cloud.security_groups.create("web", accounts=[ops])
    for port in (22, 80):
        cloud.security_groups.add_rule(group, protocol="tcp", port_min=port, port_max=port)
    cloud.security_groups.add_rule(group, protocol="icmp")
    flavor = cloud.flavors.find("m1.nano")
    return Tenant(cloud, project, password, image, flavor, network, subnet, router, group, keypair, key)
