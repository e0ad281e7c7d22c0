"""Nodes: how a machine joins, what it has, when it may take servers."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from controllerd.agents.authority import Authority
from controllerd.app.cloud import Cloud
from controllerd.domain import check
from controllerd.domain.node import ROLES, AgentRecord, Node
from controllerd.domain.page import Page, PageOf
from controllerd.domain.policy import Caller, authorise
from controllerd.domain.user import secret_hash
from controllerd.store import event
from controllerd.store import node as store
from controllerd.store.database import Row, Tx
from controllerd.store.node import NODES
from controllerd.store.table import like_name
from daemonkit import metrics
from daemonkit.errors import Conflict, InvalidArgument, Unauthenticated

TOKEN_LIFETIME_DEFAULT_S = 3600
TOKEN_LIFETIME_MAX_S = 24 * 3600
REFUSED = "the join token is unknown, used, expired, or for another node"
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")
NODE_ROLES = tuple(role for role in ROLES if role != "controller")


Addresses = Callable[[], Sequence[str]]  # as they are now
ClockOffset = Callable[[str, str], float | None]  # of (node id, kind of agent): seconds its clock is ahead, None = not known


@dataclass(frozen=True)
class NodeView:
    node: Node
    agents: Sequence[AgentRecord]
    held: Row  # vcpus, memory_mib, disk_gib, servers; empty when nothing is claimed
    clock_offsets_s: Mapping[str, float]  # kind of agent -> how far its machine's clock is ahead of the cloud's time


@dataclass(frozen=True)
class Joined:
    certificate_pem: bytes
    ca_pem: bytes
    roles: tuple[str, ...]
    controllers: tuple[str, ...]


class Nodes:
    def __init__(
        self, cloud: Cloud, authority: Authority, apis: Addresses, controllers: Addresses, clock_offset_s: ClockOffset
    ) -> None:
        """`apis`, `controllers`: addresses "host:port" a joining node is told for the API and the agent service."""
        self._db, self._runtime, self._authority = cloud.database, cloud.runtime, authority
        self._apis, self._controllers, self._clock_offset_s = apis, controllers, clock_offset_s

    async def create_join_token(self, caller: Caller, name: str, roles: Sequence[str], lifetime_s: int) -> tuple[str, float]:
        """(token, expiry). The token is shown once; only the hash of its secret is kept."""
        authorise(caller, "node.token")
        if not _HOST_NAME.fullmatch(name):
            raise InvalidArgument("name", "must be a host name: letters, digits, '-' and '.', at most 63")
        if not roles:
            raise InvalidArgument("roles", f"at least one of {', '.join(NODE_ROLES)}")
        wanted = tuple(sorted({check.one_of("roles", role, NODE_ROLES) for role in roles}))
        life_s = check.between("lifetime_s", lifetime_s or TOKEN_LIFETIME_DEFAULT_S, 1, TOKEN_LIFETIME_MAX_S)
        secret = self._runtime.new_secret()

        def store_token(tx: Tx) -> float:
            store.put_join_token(tx, secret_hash(secret), name, wanted, tx.now + life_s)
            event.record(tx, "node.token", "", name, f"join token for {name}: {', '.join(wanted)}")
            return tx.now + life_s

        expires_at = await self._db.write(store_token)
        content = {"secret": secret, "endpoints": self._apis(), "ca": self._authority.certificate_pem().decode()}
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode(), expires_at

    async def join(self, secret: str, name: str, csr_pem: bytes) -> Joined:
        """The certificate is made first and counts only with the commit that uses up the token.

        Errors: Unauthenticated (the token: not told why), InvalidArgument (csr_pem). Both are counted.
        """
        try:
            return await self._join(secret_hash(secret), name, csr_pem)
        except (Unauthenticated, InvalidArgument):
            metrics.REFUSED_PEERS.labels("join").inc()
            raise

    async def _join(self, token_hash: str, name: str, csr_pem: bytes) -> Joined:
        granted = await self._db.read(lambda tx: store.join_token(tx, token_hash))
        if granted is None or granted[0] != name:
            raise Unauthenticated(REFUSED)
        roles = granted[1]
        certificate, serial = self._authority.issue_for_request(csr_pem, name, roles)

        def use(tx: Tx) -> Joined:
            if not store.use_join_token(tx, token_hash):
                raise Unauthenticated(REFUSED)
            known = store.by_name(tx, name)
            node = Node(known.id if known else tx.new_id(), name, roles, True, str(serial), tx.now)
            if known:  # joined anew: its former certificate is refused from now on
                NODES.update(tx, node.id, roles=node.roles, certificate_serial=node.certificate_serial, joined_at=tx.now)
            else:
                NODES.insert(tx, node)
            event.record(tx, "node.join", "", node.id, f"{name} joined as {', '.join(node.roles)}")
            tx.touch(node.id)
            return Joined(certificate, self._authority.certificate_pem(), node.roles, tuple(self._controllers()))

        return await self._db.write(use)

    async def get(self, caller: Caller, name_or_id: str) -> NodeView:
        authorise(caller, "node.get")
        return await self._db.read(lambda tx: self._views(tx, [_find(tx, name_or_id)])[0])

    async def list(self, caller: Caller, name: str, page: Page) -> PageOf[NodeView]:
        authorise(caller, "node.list")

        def find(tx: Tx) -> PageOf[NodeView]:
            condition, values = like_name(name)
            found = NODES.page(tx, page, condition, *values)
            return PageOf(self._views(tx, found.items), found.next_token)

        return await self._db.read(find)

    async def set_enabled(self, caller: Caller, name_or_id: str, enabled: bool) -> NodeView:
        authorise(caller, "node.update")

        def change(tx: Tx) -> NodeView:
            node = _find(tx, name_or_id)
            NODES.update(tx, node.id, enabled=enabled)
            event.record(tx, "node.enable" if enabled else "node.disable", "", node.id, node.name)
            tx.touch(node.id)
            return self._views(tx, [replace(node, enabled=enabled)])[0]

        return await self._db.write(change)

    async def delete(self, caller: Caller, name_or_id: str) -> None:
        authorise(caller, "node.delete")

        def remove(tx: Tx) -> None:
            node = _find(tx, name_or_id)
            if any(a.connected for a in self._views(tx, [node])[0].agents):
                raise Conflict(f"node {node.name} is in session; stop its daemons first")
            if store.holds_anything(tx, node.id):
                raise Conflict(f"node {node.name} still holds servers, volumes, images or routers")
            store.delete(tx, node.id)
            event.record(tx, "node.delete", "", node.id, node.name)

        await self._db.write(remove)

    def _views(self, tx: Tx, nodes: Sequence[Node]) -> Sequence[NodeView]:
        found, held = store.agents(tx, [n.id for n in nodes]), store.holdings(tx)
        views = []
        for node in nodes:
            agents = found.get(node.id, [])
            offsets_s = {a.kind: self._clock_offset_s(node.id, a.kind) for a in agents}
            known = {kind: offset_s for kind, offset_s in offsets_s.items() if offset_s is not None}
            views.append(NodeView(node, agents, held.get(node.id, {}), known))
        return views


def _find(tx: Tx, name_or_id: str) -> Node:
    return store.by_name(tx, name_or_id) or NODES.get(tx, name_or_id)
