"""etcd beside each of several controllers, as `docs/install.md` has it on real machines: mutual TLS for clients and members."""

from __future__ import annotations

from collections.abc import Sequence

from skyrack.sandbox.layout import Node
from skyrack.sandbox.unit import Unit

CLIENT_PORT, PEER_PORT = 2379, 2380
TLS = "/etc/skyrack/etcd"
LAST_FILE = f"{TLS}/client.pem"  # of those that bootstrap writes there
QUOTA_BYTES = 2 << 30
ELECTION_MS = 500  # a member that dies must be replaced well within a controller's lease; on disks slower than this: more
SNAPSHOT_COUNT = 5000  # entries that a member holds in memory before it writes them down; the default would be 100,000


def endpoints(node: Node, controllers: Sequence[Node]) -> list[str]:
    """Of all members, the one on the node itself first; none for a controller that is alone."""
    if len(controllers) < 2:
        return []
    return [f"{member.address}:{CLIENT_PORT}" for member in sorted(controllers, key=lambda member: member != node)]


def unit(node: Node, controllers: Sequence[Node]) -> Unit:
    """A member founds the cluster with the others at its first start; later it goes by what is in its data directory."""
    client, peer = f"https://{node.address}:{CLIENT_PORT}", f"https://{node.address}:{PEER_PORT}"
    flags = {
        "name": node.name,
        "data-dir": "/var/lib/etcd",
        "listen-client-urls": f"{client},https://127.0.0.1:{CLIENT_PORT}",
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": ",".join(f"{member.name}=https://{member.address}:{PEER_PORT}" for member in controllers),
        "initial-cluster-token": "skyrack",
        **_tls(""),
        **_tls("peer-"),
        "election-timeout": str(ELECTION_MS),
        "quota-backend-bytes": str(QUOTA_BYTES),
        "snapshot-count": str(SNAPSHOT_COUNT),
        "pre-vote": "true",
        "enable-grpc-gateway": "false",
        "logger": "zap",
        "log-outputs": "stderr",
    }
    return Unit("etcd", ("etcd", *(f"--{name}={value}" for name, value in flags.items())), notify=True, needs=LAST_FILE)


def _tls(whom: str) -> dict[str, str]:
    """`whom`: "" for clients, "peer-" for the other members."""
    return {
        f"{whom}trusted-ca-file": f"{TLS}/ca.pem",
        f"{whom}cert-file": f"{TLS}/server.pem",
        f"{whom}key-file": f"{TLS}/server.key",
        f"{whom}client-cert-auth": "true",
    }
