"""Servers: created, looked at, started, stopped, rebooted, deleted. The work of each is a task on the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from controllerd.app import flavor as flavors
from controllerd.app import image as images
from controllerd.app.cloud import Cloud, Once, owned
from controllerd.app.port import NewPort, make_port, take_port
from controllerd.app.volume import attach
from controllerd.domain import check
from controllerd.domain import server as domain
from controllerd.domain.flavor import Flavor
from controllerd.domain.image import Image
from controllerd.domain.keypair import Keypair
from controllerd.domain.page import Page, PageOf
from controllerd.domain.policy import Caller, authorise
from controllerd.domain.port import AddressView
from controllerd.domain.server import Milestone, Server, next_state
from controllerd.domain.volume import Attachment
from controllerd.store import attachment, event, keypair, network, node, port, quota, task
from controllerd.store import server as store
from controllerd.store.database import Tx
from controllerd.store.node import NODES
from controllerd.store.server import SERVERS
from controllerd.tasks.operation import Operation, overtake, refuse_if_busy, start
from daemonkit.errors import Conflict, InvalidArgument, NotFound, NoValidHost

CONSOLE_BYTES_DEFAULT, CONSOLE_BYTES_MAX = 64 * 1024, 1024 * 1024


@dataclass(frozen=True)
class Wish:
    """One interface: an existing port, or a new one on a network ("" address = any)."""

    network_id: str = ""
    port_id: str = ""
    fixed_ip: str = ""


@dataclass(frozen=True)
class NewServer:
    name: str
    flavor_id: str
    image_id: str
    networks: tuple[Wish, ...] = ()  # none: the project's only network
    group_ids: tuple[str, ...] = ()  # none: the project's default group
    keypair_name: str = ""
    user_data: bytes = b""
    metadata: Mapping[str, str] = field(default_factory=dict)
    volume_ids: tuple[str, ...] = ()
    config_drive: bool = False
    different_node_than: str = ""  # a server's id
    node: str = ""  # a node's name or id


@dataclass(frozen=True)
class ServerView:
    """`timeline`: only where one server is looked at."""

    server: Server
    state: str  # as shown
    addresses: Sequence[AddressView]
    attachments: Sequence[Attachment]
    task_id: str  # of the work in progress
    node_name: str  # "" unless the caller is an admin
    fault_details: Sequence[str]
    timeline: Sequence[Milestone] = ()


class Console(Protocol):
    async def read(self, node_id: str, server_id: str, bytes_max: int) -> bytes:
        """The end of a server's serial console log. Errors: Unavailable."""


class Servers:
    def __init__(self, cloud: Cloud, operations: Mapping[str, Operation], console: Console) -> None:
        """`operations`: by kind, those of `controllerd.tasks.server_*`."""
        self._db, self._operations, self._console = cloud.database, operations, console

    async def create(self, caller: Caller, new: NewServer, once: Once) -> ServerView:
        """Answers with state BUILD; it becomes ACTIVE or ERROR."""
        authorise(caller, "server.create")
        if new.node:
            authorise(caller, "placement_hint")

        def make(tx: Tx) -> Server:
            server = _insert(tx, caller, new)
            event.record(tx, "server.create", server.project_id, server.id, server.name)
            start(tx, self._operations["server_create"], server.project_id, "server", server.id)
            return server

        def run(tx: Tx) -> ServerView:
            return _view(tx, caller, once.run(tx, caller, lambda: make(tx), lambda i: SERVERS.get(tx, i), lambda s: s.id))

        return await self._db.write(run)

    async def get(self, caller: Caller, server_id: str) -> ServerView:
        authorise(caller, "server.get")
        return await self._db.read(lambda tx: _view(tx, caller, _own(tx, caller, server_id)))

    async def list(self, caller: Caller, name: str, state: str, all_projects: bool, page: Page) -> PageOf[ServerView]:
        """`state`: as shown, "" = any."""
        authorise(caller, "server.list")
        if all_projects:
            authorise(caller, "all_projects")

        def find(tx: Tx) -> PageOf[ServerView]:
            found = store.visible(tx, caller.project_id, all_projects, name, state, page)
            return PageOf(views(tx, caller, found.items), found.next_token)

        return await self._db.read(find)

    async def update(
        self, caller: Caller, server_id: str, name: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> ServerView:
        """None keeps what is there. The guest's metadata service tells the new ones."""
        authorise(caller, "server.update")

        def change(tx: Tx) -> ServerView:
            server = _own(tx, caller, server_id)
            changes: dict[str, Any] = {} if name is None else {"name": name}
            changes |= {} if metadata is None else {"metadata": dict(metadata)}
            if changes:
                server = store.change(tx, server, **changes)
                port.touch_server(tx, server_id)
                event.record(tx, "server.update", server.project_id, server_id)
            return _view(tx, caller, server)

        return await self._db.write(change)

    async def delete(self, caller: Caller, server_id: str) -> ServerView:
        """In any state; takes over from whatever is under way."""
        authorise(caller, "server.delete")
        operation = self._operations["server_delete"]

        def remove(tx: Tx) -> ServerView:
            server = _own(tx, caller, server_id)
            running = task.of_resource(tx, server_id)
            if running is None or running.kind != operation.kind:
                overtake(tx, server_id)
                server = store.change(tx, server, state=domain.DELETING)
                event.record(tx, "server.delete", server.project_id, server_id, server.name)
                start(tx, operation, server.project_id, "server", server_id)
            return _view(tx, caller, server)

        return await self._db.write(remove)

    async def start(self, caller: Caller, server_id: str) -> ServerView:
        return await self._switch(caller, server_id, "start")

    async def stop(self, caller: Caller, server_id: str) -> ServerView:
        """By the power button; a guest that does not obey in time loses its power."""
        return await self._switch(caller, server_id, "stop")

    async def reboot(self, caller: Caller, server_id: str, hard: bool) -> ServerView:
        return await self._switch(caller, server_id, "reboot", hard="1" if hard else "")

    async def _switch(self, caller: Caller, server_id: str, verb: str, **args: str) -> ServerView:
        authorise(caller, f"server.{verb}")

        def switch(tx: Tx) -> ServerView:
            server = _own(tx, caller, server_id)
            refuse_if_busy(tx, "server", server_id)
            lost = bool(server.node_id) and node.is_lost(tx, server.node_id, "computed")
            state = next_state(server, verb, lost)
            operation = self._operations[f"server_{verb}"]
            start(tx, operation, server.project_id, "server", server_id, state=server.state, power=server.power, **args)
            event.record(tx, f"server.{verb}", server.project_id, server_id)
            return _view(tx, caller, store.change(tx, server, state=state))

        return await self._db.write(switch)

    async def console_log(self, caller: Caller, server_id: str, bytes_max: int) -> bytes:
        """The end of the serial console's log; `bytes_max` 0 = 64 KiB. Errors: Conflict, Unavailable."""
        authorise(caller, "server.console")
        wanted = check.between("bytes_max", bytes_max or CONSOLE_BYTES_DEFAULT, 1, CONSOLE_BYTES_MAX)
        server = await self._db.read(lambda tx: _own(tx, caller, server_id))
        if not server.node_id:
            raise Conflict(f"server {server_id} has no console: it is {server.state} and on no node")
        return (await self._console.read(server.node_id, server_id, wanted))[-wanted:]  # whatever the node thinks of limits


# ---------------------------------------------------------------- creating


def _insert(tx: Tx, caller: Caller, new: NewServer) -> Server:
    flavor, image = flavors.usable(tx, caller, new.flavor_id), images.usable(tx, caller, new.image_id)
    domain.fit(flavor, image)
    server = _row(tx, caller, new, flavor, image, _keypair(tx, caller, new.keypair_name), _placement(tx, caller, new))
    quota.take(tx, caller.project_id, servers=1, vcpus=server.vcpus, memory_mib=server.memory_mib)
    store.insert(tx, server, domain.user_data(new.user_data))
    _plug_networks(tx, caller, server, new)
    _plug_volumes(tx, caller, server, new.volume_ids)
    return server


def _row(
    tx: Tx, caller: Caller, new: NewServer, flavor: Flavor, image: Image, key: Keypair | None, placement: dict[str, str]
) -> Server:
    return Server(
        id=tx.new_id(), name=new.name, project_id=caller.project_id, user_id=caller.user_id, state=domain.BUILD,
        flavor_id=flavor.id, flavor_name=flavor.name, vcpus=flavor.vcpus, memory_mib=flavor.memory_mib,
        disk_gib=flavor.disk_gib, image_id=image.id, image_sha256=image.sha256, image_format=image.format,
        image_size_bytes=image.size_bytes, image_virtual_bytes=image.virtual_bytes, keypair_name=new.keypair_name,
        public_key=key.public_key if key else "", metadata=dict(new.metadata), config_drive=new.config_drive,
        placement=placement, node_id="", power="", fault_reason="", fault_message="", fault_details=(),
        created_at=tx.now, updated_at=tx.now, launched_at=0.0, observed_state="", observed_fault="", observed_attached=(),
        observed_at=0.0, observed_milestones={},
    )  # fmt: skip


def _keypair(tx: Tx, caller: Caller, name: str) -> Keypair | None:
    if not name:
        return None
    found = keypair.find(tx, caller.user_id, name)
    if found is None:
        raise NotFound("keypair", name)
    return found


def _placement(tx: Tx, caller: Caller, new: NewServer) -> dict[str, str]:
    hints: dict[str, str] = {}
    if new.different_node_than:
        hints["different_node_than"] = _own(tx, caller, new.different_node_than).id
    if new.node:
        chosen = node.by_name(tx, new.node) or NODES.get(tx, new.node)
        hints["node"] = chosen.id
    return hints


def _plug_networks(tx: Tx, caller: Caller, server: Server, new: NewServer) -> None:
    wishes = new.networks or (_only_network(tx, caller),)
    if len(wishes) > domain.NETWORKS_MAX:
        raise InvalidArgument("networks", f"at most {domain.NETWORKS_MAX}, has {len(wishes)}")
    for position, wish in enumerate(wishes):
        if bool(wish.network_id) == bool(wish.port_id):
            raise InvalidArgument("networks", "each names either a network_id or a port_id")
        if wish.port_id:
            take_port(tx, caller, wish.port_id, server.id, position)
        else:
            make_port(tx, caller, _new_port(server, new, wish, position))


def _new_port(server: Server, new: NewServer, wish: Wish, position: int) -> NewPort:
    return NewPort(
        network_id=wish.network_id, fixed_ips=(("", wish.fixed_ip),) if wish.fixed_ip else (), group_ids=new.group_ids or None,
        server_id=server.id, made_for_server=True, position=position,
    )  # fmt: skip


def _only_network(tx: Tx, caller: Caller) -> Wish:
    found = network.usable(tx, caller.project_id)
    if len(found) != 1:
        names = ", ".join(f"{n.name} ({n.id})" for n in found)
        why = f"name one, there are several: {names}..." if found else "the project has no network yet; create one"
        raise InvalidArgument("networks", why)
    return Wish(network_id=found[0].id)


def _plug_volumes(tx: Tx, caller: Caller, server: Server, volume_ids: tuple[str, ...]) -> None:
    if len(volume_ids) > domain.VOLUMES_MAX:
        raise InvalidArgument("volume_ids", f"at most {domain.VOLUMES_MAX}, has {len(volume_ids)}")
    if len(set(volume_ids)) != len(volume_ids):
        raise InvalidArgument("volume_ids", "a volume is named twice")
    for volume_id in volume_ids:
        attach(tx, caller, server.id, volume_id)


# ---------------------------------------------------------------- looking


def _own(tx: Tx, caller: Caller, server_id: str) -> Server:
    server = SERVERS.get(tx, server_id)
    owned(caller, "server", server_id, server.project_id)
    return server


def views(tx: Tx, caller: Caller, servers: Sequence[Server]) -> list[ServerView]:
    """A fixed number of queries, however many servers there are."""
    ids = [s.id for s in servers]
    addresses, attachments = port.addresses(tx, ids), attachment.of_servers(tx, ids)
    tasks, lost = task.of_resources(tx, ids), node.lost_nodes(tx, "computed")
    names = node.names(tx) if caller.admin else {}
    return [
        ServerView(
            server=s, state=s.shown(s.node_id in lost), addresses=addresses.get(s.id, ()),
            attachments=attachments.get(s.id, ()), task_id=tasks.get(s.id, ""), node_name=names.get(s.node_id, ""),
            fault_details=s.fault_details,
        )
        for s in servers
    ]  # fmt: skip


def _view(tx: Tx, caller: Caller, server: Server) -> ServerView:
    """One server, with the timeline of its launch; for admins, with the names of the nodes that refused it."""
    view = views(tx, caller, [server])[0]
    details = view.fault_details
    if caller.admin and server.fault_reason == NoValidHost.reason:
        for refused in event.newest(tx, event.last_seq(tx) + 1, 1, resource_id=server.id, kind="server.no_valid_host"):
            details = refused.message.splitlines()
    entries = domain.timeline(server.created_at, event.times_of(tx, server.id, "server."))
    return replace(view, fault_details=details, timeline=entries)
