"""A tenant's site: web-1 with a floating IP and a volume, web-2 on another node; seen from the internet and from inside."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from skyrack.client.floating_ip import FloatingIp
from skyrack.client.server import Server
from skyrack.client.volume import Volume
from tests.e2e.patience import LIMIT_S, until
from tests.e2e.running_rack import RunningRack
from tests.e2e.tenant import Tenant

_SSH = {
    "StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "LogLevel": "ERROR", "BatchMode": "yes",
    "ConnectTimeout": "10", "IdentitiesOnly": "yes",
}  # fmt: skip


@dataclass(frozen=True)
class Site:
    rack: RunningRack
    tenant: Tenant
    web: Server
    other: Server
    volume: Volume
    address: FloatingIp

    def page(self, *, port: int = 80, path: str = "", limit_s: int = 10) -> str:
        """web-1's page as the client on the internet gets it. Errors: CalledProcessError unless it answers 200."""
        curl = ("curl", "-sfL", "--noproxy", "*", "--max-time", str(limit_s), f"http://{self.address.ip}:{port}/{path}")
        return self.rack.exec("internet", *curl)

    def ssh(self, command: str, user: str = "root") -> str:
        """Output of a command in web-1, by ssh from the internet. Errors: CalledProcessError."""
        return self.rack.exec("internet", *self.login(command, user))

    def login(self, command: str, user: str = "root") -> list[str]:
        """argv that runs a command in web-1, on the internet."""
        options = [word for name, value in _SSH.items() for word in ("-o", f"{name}={value}")]
        words = ["ssh", *options, "-i", str(self.tenant.key), f"{user}@{self.address.ip}"]
        return [*words, shlex.join(["sh", "-c", command])]

    def page_of_other(self) -> str:
        """web-2's page as web-1 gets it, over the tenant's network."""
        return self.ssh(f"timeout 10 wget -q -O - http://{self.other.addresses[0].ip}/cgi-bin/info")

    def boots(self) -> int:
        """How often web-1's disk was booted, as its page says."""
        told = re.search(r"boot number (\d+)", self.page(path="cgi-bin/info"))
        assert told, "on its way down, or up"
        return int(told[1])


def build(rack: RunningRack, tenant: Tenant) -> Site:
    """Returns when both guests are up."""
    cloud = tenant.cloud
    volume = cloud.volumes.wait(cloud.volumes.create("data", size_gib=1), "AVAILABLE", deadline_s=60)
    web = tenant.create("web-1", volumes=[volume])
    other = tenant.create("web-2", different_node_than=web)
    web, other = (cloud.servers.wait(server, "ACTIVE", deadline_s=LIMIT_S) for server in (web, other))
    address = cloud.floating_ips.create(cloud.networks.find("public"), server=web)
    site = Site(rack, tenant, web, other, volume, address)
    until(lambda: site.ssh("grep /mnt/vdb /proc/mounts"), "web-1 is up, with its volume")
    until(site.page_of_other, "web-2 is up")
    return site
