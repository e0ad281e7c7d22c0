"""The door of the SDK: one `Cloud` is one login to one project of one cloud."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from skyrack.client import errors
from skyrack.client.connection import Connection, Login, Patience
from skyrack.client.login import GivenToken, Password

if TYPE_CHECKING:
    from skyrack.client.cluster import Clusters
    from skyrack.client.event import Events
    from skyrack.client.flavor import Flavors
    from skyrack.client.floating_ip import FloatingIps
    from skyrack.client.image import Images
    from skyrack.client.keypair import Keypairs
    from skyrack.client.network import Networks
    from skyrack.client.node import Nodes
    from skyrack.client.port import Ports
    from skyrack.client.project import Projects
    from skyrack.client.quota import Quotas
    from skyrack.client.role import Roles
    from skyrack.client.router import Routers
    from skyrack.client.security_group import SecurityGroups
    from skyrack.client.server import Servers
    from skyrack.client.subnet import Subnets
    from skyrack.client.task import Tasks
    from skyrack.client.token import Tokens
    from skyrack.client.usage import Usages
    from skyrack.client.user import Users
    from skyrack.client.volume import Volumes

# Attribute of Cloud -> module and class. Imported when first used: each noun brings its protobuf messages with it.
NOUNS = {
    "cluster": ("cluster", "Clusters"),
    "events": ("event", "Events"),
    "flavors": ("flavor", "Flavors"),
    "floating_ips": ("floating_ip", "FloatingIps"),
    "images": ("image", "Images"),
    "keypairs": ("keypair", "Keypairs"),
    "networks": ("network", "Networks"),
    "nodes": ("node", "Nodes"),
    "ports": ("port", "Ports"),
    "projects": ("project", "Projects"),
    "quotas": ("quota", "Quotas"),
    "roles": ("role", "Roles"),
    "routers": ("router", "Routers"),
    "security_groups": ("security_group", "SecurityGroups"),
    "servers": ("server", "Servers"),
    "subnets": ("subnet", "Subnets"),
    "tasks": ("task", "Tasks"),
    "tokens": ("token", "Tokens"),
    "usages": ("usage", "Usages"),
    "users": ("user", "Users"),
    "volumes": ("volume", "Volumes"),
}


class Cloud:
    """Resources by noun: `cloud.servers`, `cloud.networks`, ... Belongs to the event loop it is first used in.

    Use as `async with Cloud.connect() as cloud:`; nothing is dialled before the first call.
    """

    cluster: Clusters
    events: Events
    flavors: Flavors
    floating_ips: FloatingIps
    images: Images
    keypairs: Keypairs
    networks: Networks
    nodes: Nodes
    ports: Ports
    projects: Projects
    quotas: Quotas
    roles: Roles
    routers: Routers
    security_groups: SecurityGroups
    servers: Servers
    subnets: Subnets
    tasks: Tasks
    tokens: Tokens
    usages: Usages
    users: Users
    volumes: Volumes

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    def connect(
        cls,
        endpoints: Sequence[str] = (),
        *,
        ca: str | Path | bytes = "",
        user: str = "",
        password: str = "",
        project: str = "",
        token: str = "",
        patience: Patience | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Cloud:
        """What is not given comes from SKYRACK_ENDPOINT, _CA, _USER, _PASSWORD, _PROJECT and _TOKEN.

        `endpoints`: "host:port" each. `ca`: path of the cloud's CA certificate, or its PEM. A token wins over a password, an
        argument over the environment. Errors: Misconfigured.
        """
        addresses = list(endpoints) or [part.strip() for part in environ.get("SKYRACK_ENDPOINT", "").split(",") if part.strip()]
        if not addresses:
            raise errors.Misconfigured("no endpoint given")
        if wrong := [address for address in addresses if not address.rpartition(":")[2].isdecimal()]:
            raise errors.Misconfigured(f"endpoint {wrong[0]!r} is not host:port")
        login = _login(user, password, project, token, environ)
        return cls(Connection(addresses, _pem(ca or environ.get("SKYRACK_CA", "")), login, patience))

    def __getattr__(self, noun: str) -> Any:
        if noun not in NOUNS:
            raise AttributeError(noun)
        module, name = NOUNS[noun]
        collection = getattr(importlib.import_module(f"skyrack.client.{module}"), name)(self._connection)
        setattr(self, noun, collection)
        return collection

    async def close(self) -> None:
        await self._connection.close()

    async def __aenter__(self) -> Cloud:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _login(user: str, password: str, project: str, token: str, environ: Mapping[str, str]) -> Login:
    if token or (not (user or password) and environ.get("SKYRACK_TOKEN")):
        return GivenToken(token or environ["SKYRACK_TOKEN"])
    user = user or environ.get("SKYRACK_USER", "")
    if not user:
        return GivenToken("")
    return Password(user, password or environ.get("SKYRACK_PASSWORD", ""), project or environ.get("SKYRACK_PROJECT", ""))


def _pem(ca: str | Path | bytes) -> bytes:
    if not ca:
        raise errors.Misconfigured("no CA certificate given")
    try:
        pem = ca if isinstance(ca, bytes) else Path(ca).read_bytes()
    except OSError as error:
        raise errors.Misconfigured(f"cannot read the CA certificate {error.filename}: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise errors.Misconfigured("what is given as the CA certificate holds no PEM certificate")
    return pem
