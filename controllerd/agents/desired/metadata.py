"""What a guest learns about itself: for the metadata service at its ports and for its config drive."""

from __future__ import annotations

from collections.abc import Iterable

from controllerd.domain.server import Server, hostname
from controllerd.store import security_group
from controllerd.store import server as server_store
from controllerd.store.database import Tx
from skyrack.v1 import agent_pb2

AVAILABILITY_ZONE = "nova"  # what images expect where there is only one


class Metadata:
    """Of these servers, however many, with a fixed number of queries."""

    def __init__(self, tx: Tx, servers: Iterable[Server]) -> None:
        ids = [server.id for server in servers]
        self._user_data, self._accounts = server_store.user_data_of(tx, ids), security_group.accounts_of(tx, ids)

    def of(self, server: Server) -> agent_pb2.ServerMetadata:
        keys = [agent_pb2.PublicKey(name=server.keypair_name, data=server.public_key)] if server.public_key else []
        return agent_pb2.ServerMetadata(
            server_id=server.id, name=server.name, hostname=hostname(server.name, server.id), project_id=server.project_id,
            availability_zone=AVAILABILITY_ZONE, meta=server.metadata, public_keys=keys,
            user_data=self._user_data.get(server.id, b""), flavor=server.flavor_name, image_id=server.image_id,
            accounts=[
                agent_pb2.Account(name=a.name, public_keys=a.public_keys, sudo=a.sudo)
                for a in self._accounts.get(server.id, ())
            ],
        )  # fmt: skip
