"""A public API over dictionaries: the generated services, answered from what is stored, over TLS on 127.0.0.1.

Creates, gets, lists (by pages), updates and deletes work for every noun by the names of their messages; what has a mind of its
own (servers that take time, uploads, tokens) is below. `before` and `after` hold faults to raise at the next calls of a method,
before or after it took effect.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import itertools
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from google.protobuf.empty_pb2 import Empty

from daemonkit import errors, rpc, tls
from skyrack.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    flavor_pb2,
    flavor_pb2_grpc,
    identity_pb2,
    identity_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    keypair_pb2,
    keypair_pb2_grpc,
    network_pb2,
    network_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    quota_pb2,
    quota_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
    security_group_pb2,
    security_group_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    task_pb2,
    task_pb2_grpc,
    volume_pb2,
    volume_pb2_grpc,
)
from tests.pki import Pki

SERVICES: list[tuple[Any, Any]] = [
    (cluster_pb2, cluster_pb2_grpc),
    (event_pb2, event_pb2_grpc),
    (flavor_pb2, flavor_pb2_grpc),
    (identity_pb2, identity_pb2_grpc),
    (image_pb2, image_pb2_grpc),
    (keypair_pb2, keypair_pb2_grpc),
    (network_pb2, network_pb2_grpc),
    (node_pb2, node_pb2_grpc),
    (quota_pb2, quota_pb2_grpc),
    (router_pb2, router_pb2_grpc),
    (security_group_pb2, security_group_pb2_grpc),
    (server_pb2, server_pb2_grpc),
    (task_pb2, task_pb2_grpc),
    (volume_pb2, volume_pb2_grpc),
]
NO_LOGIN = ("CreateToken", "JoinNode")
MADE_AT = datetime(2026, 5, 31, 12, 0, tzinfo=UTC)
PASSWORD = "correct horse battery"
Fault = Exception | Callable[[], Any]


class FakeCloud:
    """What is stored, whoever asks. Ids count up, so that tables can be compared with golden ones."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = collections.defaultdict(dict)
        self.calls: list[tuple[str, Any, dict[str, str]]] = []
        self.before: dict[str, list[Fault]] = collections.defaultdict(list)
        self.after: dict[str, list[Fault]] = collections.defaultdict(list)
        self.made: dict[str, Any] = {}
        self.tokens: set[str] = set()
        self.role = "member"
        self.contents: dict[str, bytes] = {}
        self.page_size_max = 2
        self.server_story: list[Any] = []
        self.events: list[Any] = []
        self.new_event = asyncio.Event()
        self.limits = {"servers": 10}
        self.join_roles: dict[str, tuple[str, list[str]]] = {}
        self.console = b""
        self.cluster = cluster_pb2.Cluster(cluster_id="c0", leader="c1", epoch=7, seq=12, schema=2)
        self.backup = b""
        self.successors: list[str] = []  # who leads at each further look
        self._ids = itertools.count(1)

    def new_id(self) -> str:
        return str(uuid.UUID(int=next(self._ids)))

    def methods(self) -> list[str]:
        return [method for method, _request, _metadata in self.calls]

    def get(self, kind: str, row_id: str) -> Any:
        if row_id not in self.rows[kind]:
            raise errors.NotFound(kind, row_id)
        return self.rows[kind][row_id]

    def put(self, row: Any, **fields: Any) -> Any:
        """Stores a row as if made before the test."""
        row.id = row.id or self.new_id()
        if "created_at" in row.DESCRIPTOR.fields_by_name:
            row.created_at.FromDatetime(MADE_AT)
        self.rows[type(row).__name__][row.id] = row
        return row

    def tell(self, kind: str, message: str) -> None:
        event = event_pb2.Event(seq=len(self.events) + 1, kind=kind, message=message)
        event.time.FromDatetime(MADE_AT)
        self.events.append(event)
        self.new_event.set()
        self.new_event = asyncio.Event()


class FakeApi:
    """One controller: `cloud` behind a port. With `leader` it is a standby that sends everybody there."""

    def __init__(self, cloud: FakeCloud, pki: Pki, name: str = "c1") -> None:
        self.cloud, self.pki = cloud, pki
        self.directory = pki.node(name, "controller")
        self.leader: str | None = None
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"

    async def start(self) -> FakeApi:
        self._server = rpc.Server(lambda: uuid.uuid4().hex)
        names = []
        for module, stubs in SERVICES:
            for name, service in module.DESCRIPTOR.services_by_name.items():
                getattr(stubs, f"add_{name}Servicer_to_server")(self._servicer(service, module), self._server.grpc)
                names.append(service.full_name)
        credentials = tls.TlsFiles(self.directory).server(clients_must_show_certificate=False)
        self.port = self._server.bind(f"127.0.0.1:{self.port}", credentials)
        await self._server.start(names)
        return self

    async def stop(self) -> None:
        await self._server.grpc.stop(0)

    async def break_off(self) -> None:
        """Every connection breaks; a moment later the controller is back on its port."""
        old = self._server

        async def again() -> None:
            await old.grpc.stop(0)
            await self.start()

        self._again = asyncio.create_task(again())
        await asyncio.sleep(5)

    def _servicer(self, service: Any, module: Any) -> Any:
        """An object with the service's methods, each answered by `_answer` or by the one below of that name."""
        servicer = type(service.name, (), {})()
        for method in service.methods:
            setattr(servicer, method.name, self._method(method, module))
        return servicer

    def _method(self, method: Any, module: Any) -> Any:
        own = getattr(self, f"_{method.name}", None)

        async def once(request: Any, context: Any) -> Any:
            first = None if method.name == "UploadImage" else request
            await self._enter(method.name, first, context)
            key = getattr(request, "idempotency_key", "")
            if key and key in self.cloud.made:
                return self.cloud.made[key]
            answer = await own(request) if own else self._answer(method, request)
            if key:
                self.cloud.made[key] = answer
            await _fire(self.cloud.after[method.name])
            return answer

        async def many(request: Any, context: Any) -> AsyncIterator[Any]:
            await self._enter(method.name, request, context)
            async for message in own(request):
                yield message

        return many if method.name in ("WatchEvents", "DownloadImage", "Backup") else once

    async def _enter(self, method: str, request: Any, context: Any) -> None:
        metadata = dict(context.invocation_metadata())
        self.cloud.calls.append((method, request, metadata))
        if self.leader is not None:
            raise errors.NotLeader(self.leader, 7)
        if method not in NO_LOGIN and metadata.get("authorization", "").removeprefix("Bearer ") not in self.cloud.tokens:
            raise errors.Unauthenticated("no valid token")
        if getattr(request, "all_projects", False) and self.cloud.role != "admin":
            raise errors.Forbidden("all_projects needs the role admin; alice has member")
        await _fire(self.cloud.before[method])

    # ------------------------------------------------------------ what all nouns do

    def _answer(self, method: Any, request: Any) -> Any:
        kind = method.output_type.name
        output = method.output_type._concrete_class
        verb = next(v for v in ("Create", "Get", "List", "Update", "Delete") if method.name.startswith(v))
        noun = method.name.removeprefix(verb)
        if verb == "Create":
            return self._create(output(), request)
        if verb == "List":
            return self._list(output(), request, noun)
        row = self.cloud.get(noun if noun != "Task" else "TaskInfo", next(iter(_values(request))))
        if verb == "Update":
            _copy(request, row)
        if verb == "Delete":
            del self.cloud.rows[noun][row.id]
            return row if kind == noun else Empty()
        return row

    def _create(self, row: Any, request: Any) -> Any:
        _copy(request, row)
        if "fixed_ips" in row.DESCRIPTOR.fields_by_name and not row.fixed_ips:
            row.fixed_ips.add(ip="10.0.0.5")
        if "state" in row.DESCRIPTOR.fields_by_name:
            row.state = 1
        if "project_id" in row.DESCRIPTOR.fields_by_name:
            row.project_id = "p1"
        return self.cloud.put(row)

    def _list(self, page: Any, request: Any, plural: str) -> Any:
        field = next(f for f in page.DESCRIPTOR.fields if f.is_repeated)
        name = getattr(request, "name", "") or getattr(request, "ip", "")
        rows = [
            row
            for row in self.cloud.rows[field.message_type.name].values()
            if not name or name in (getattr(row, "name", ""), getattr(row, "ip", ""))
            if getattr(request, "all_projects", False) or _seen(row)
        ]
        begin = int(request.page_token or 0)
        end = begin + min(request.page_size or 100, self.cloud.page_size_max)
        getattr(page, field.name).extend(rows[begin:end])
        page.next_page_token = str(end) if end < len(rows) else ""
        return page

    # ------------------------------------------------------------ identity

    async def _CreateToken(self, request: Any) -> Any:
        if request.password != PASSWORD:
            raise errors.Unauthenticated("user and password do not fit")
        token = f"token-{len(self.cloud.tokens) + 1}-{uuid.uuid4().hex}"
        self.cloud.tokens.add(token)
        return self._token(token)

    async def _GetToken(self, _request: Any) -> Any:
        return self._token("")

    async def _RevokeToken(self, _request: Any) -> Any:
        self.cloud.tokens.discard(self.cloud.calls[-1][2]["authorization"].removeprefix("Bearer "))
        return Empty()

    def _token(self, token: str) -> Any:
        answer = identity_pb2.Token(token=token, user_id="u1", user_name="alice", project_id="p1", project_name="lab")
        answer.roles.append(self.cloud.role)
        answer.expires_at.FromDatetime(MADE_AT)
        return answer

    async def _GrantRole(self, request: Any) -> Any:
        row = identity_pb2.RoleAssignment(user_id=request.user_id, project_id=request.project_id, role=request.role)
        self.cloud.rows["RoleAssignment"][str(row)] = row
        return Empty()

    async def _RevokeRole(self, request: Any) -> Any:
        self.cloud.rows["RoleAssignment"].clear()
        return Empty()

    async def _ListRoles(self, request: Any) -> Any:
        return identity_pb2.ListRolesResponse(assignments=self.cloud.rows["RoleAssignment"].values())

    # ------------------------------------------------------------ servers and volumes

    async def _CreateServer(self, request: Any) -> Any:
        used, limit = len(self.cloud.rows["Server"]), self.cloud.limits["servers"]
        if used >= limit:
            raise errors.QuotaExceeded("servers", limit, used, 1)
        row = self._create(server_pb2.Server(), request)
        row.flavor_name = self.cloud.get("Flavor", request.flavor_id).name
        return row

    async def _GetServer(self, request: Any) -> Any:
        row = self.cloud.get("Server", request.server_id)
        if self.cloud.server_story:
            row.MergeFrom(self.cloud.server_story.pop(0))
            if row.state == server_pb2.SERVER_STATE_DELETING:
                del self.cloud.rows["Server"][row.id]
        return row

    async def _DeleteServer(self, request: Any) -> Any:
        row = self.cloud.get("Server", request.server_id)
        if self.cloud.server_story:
            row.state = server_pb2.SERVER_STATE_DELETING
        else:
            del self.cloud.rows["Server"][row.id]
        return row

    async def _StartServer(self, request: Any) -> Any:
        return await self._power(request, "STOPPED", "ACTIVE")

    async def _StopServer(self, request: Any) -> Any:
        return await self._power(request, "ACTIVE", "STOPPED")

    async def _RebootServer(self, request: Any) -> Any:
        return await self._power(request, "ACTIVE", "ACTIVE")

    async def _power(self, request: Any, needed: str, then: str) -> Any:
        row = self.cloud.get("Server", request.server_id)
        if row.state != server_pb2.ServerState.Value(f"SERVER_STATE_{needed}"):
            raise errors.Conflict(f"server {row.name} is not {needed}")
        row.state = server_pb2.ServerState.Value(f"SERVER_STATE_{then}")
        return row

    async def _GetConsoleLog(self, _request: Any) -> Any:
        return server_pb2.ConsoleLog(data=self.cloud.console)

    async def _AttachVolume(self, request: Any) -> Any:
        volume = self.cloud.get("Volume", request.volume_id)
        volume.state = volume_pb2.VOLUME_STATE_IN_USE
        volume.attachment.MergeFrom(
            server_pb2.Attachment(id="a1", server_id=request.server_id, volume_id=request.volume_id, device="/dev/vdb", state=2)
        )
        return volume.attachment

    async def _DetachVolume(self, request: Any) -> Any:
        volume = self.cloud.get("Volume", request.volume_id)
        attachment = server_pb2.Attachment()
        attachment.CopyFrom(volume.attachment)
        volume.ClearField("attachment")
        volume.state = volume_pb2.VOLUME_STATE_AVAILABLE
        return attachment

    # ------------------------------------------------------------ images

    async def _UploadImage(self, requests: Any) -> Any:
        image: Any = None
        content = b""
        async for request in requests:
            part = request.WhichOneof("part")
            if part == "begin":
                image = self.cloud.get("Image", request.begin.image_id)
                if image.state != image_pb2.IMAGE_STATE_QUEUED:
                    raise errors.Conflict(f"image {image.name} has content already")
            elif part == "chunk":
                content += request.chunk
                await _fire(self.cloud.before["chunk"])
            elif request.commit.sha256 != hashlib.sha256(content).hexdigest():
                raise errors.InvalidArgument("commit.sha256", "not that of the content")
            else:
                image.state, image.sha256, image.size_bytes = 3, request.commit.sha256, len(content)
                self.cloud.contents[image.id] = content
        return image

    async def _DownloadImage(self, request: Any) -> AsyncIterator[Any]:
        content = self.cloud.contents[request.image_id]
        for place in range(request.offset, len(content), 1 << 20):
            yield image_pb2.ImageChunk(data=content[place : place + (1 << 20)])
            await _fire(self.cloud.before["sent"])

    # ------------------------------------------------------------ networks

    async def _CreateSecurityGroupRule(self, request: Any) -> Any:
        group = self.cloud.get("SecurityGroup", request.security_group_id)
        rule = group.rules.add(id=self.cloud.new_id(), port_min=-1, port_max=-1)
        _copy(request, rule)
        return rule

    async def _DeleteSecurityGroupRule(self, request: Any) -> Any:
        for group in self.cloud.rows["SecurityGroup"].values():
            for place, rule in enumerate(group.rules):
                if rule.id == request.rule_id:
                    del group.rules[place]
                    return Empty()
        raise errors.NotFound("security_group_rule", request.rule_id)

    async def _AddRouterInterface(self, request: Any) -> Any:
        router = self.cloud.get("Router", request.router_id)
        router.interfaces.add(subnet_id=request.subnet_id, ip="10.0.0.1", port_id="port-1")
        return router

    async def _RemoveRouterInterface(self, request: Any) -> Any:
        router = self.cloud.get("Router", request.router_id)
        del router.interfaces[:]
        return router

    async def _CreateFloatingIp(self, request: Any) -> Any:
        row = self._create(router_pb2.FloatingIp(), request)
        row.ip = request.ip or "203.0.113.7"
        return row

    # ------------------------------------------------------------ the control plane

    async def _GetCluster(self, _request: Any) -> Any:
        cluster = self.cloud.cluster
        if self.cloud.successors and (successor := self.cloud.successors.pop(0)) != cluster.leader:
            cluster.leader, cluster.epoch = successor, cluster.epoch + 1
        return cluster

    async def _TransferLeadership(self, request: Any) -> Any:
        if request.controller and request.controller not in [one.name for one in self.cloud.cluster.controllers]:
            raise errors.NotFound("controller", request.controller)
        before = cluster_pb2.Cluster()
        before.CopyFrom(self.cloud.cluster)
        return before

    async def _ReleaseNodes(self, _request: Any) -> Any:
        self.cloud.cluster.recovery.ClearField("held_nodes")
        return self.cloud.cluster

    async def _Backup(self, _request: Any) -> AsyncIterator[Any]:
        content = self.cloud.backup
        for place in range(0, len(content), 1 << 20):
            yield cluster_pb2.BackupChunk(data=content[place : place + (1 << 20)], size_bytes=len(content))
            await _fire(self.cloud.before["sent"])
        yield cluster_pb2.BackupChunk(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))

    async def _ListDifferences(self, _request: Any) -> Any:
        return cluster_pb2.ListDifferencesResponse(differences=self.cloud.rows["Difference"].values())

    # ------------------------------------------------------------ nodes, events, quota

    async def _GetNode(self, request: Any) -> Any:
        for row in self.cloud.rows["Node"].values():
            if request.node_id in (row.id, row.name):
                return row
        raise errors.NotFound("node", request.node_id)

    async def _UpdateNode(self, request: Any) -> Any:
        row = await self._GetNode(node_pb2.GetNodeRequest(node_id=request.node_id))
        row.enabled = request.enabled
        return row

    async def _CreateJoinToken(self, request: Any) -> Any:
        self.cloud.join_roles["secret"] = (request.name, list(request.roles))
        return node_pb2.JoinToken(token="made-below")

    async def _JoinNode(self, request: Any) -> Any:
        name, roles = self.cloud.join_roles.pop(request.secret, ("", []))
        if not name:
            raise errors.Unauthenticated("unknown, used or expired secret")
        csr = x509.load_pem_x509_csr(request.csr_pem)
        if name != request.name or not csr.is_signature_valid:
            raise errors.InvalidArgument("name", "the token is for another node")
        pem = (self.pki.node(name, *roles) / "node.pem").read_bytes()
        return node_pb2.JoinNodeResponse(
            certificate_pem=pem, ca_pem=self.ca.read_bytes(), roles=roles, controllers=["10.99.0.11:7701"]
        )

    async def _ListEvents(self, request: Any) -> Any:
        newest = list(reversed(self.cloud.events))
        begin = int(request.page_token or 0)
        end = begin + min(request.page_size or 100, self.cloud.page_size_max)
        token = str(end) if end < len(newest) else ""
        return event_pb2.ListEventsResponse(events=newest[begin:end], next_page_token=token)

    async def _WatchEvents(self, request: Any) -> AsyncIterator[Any]:
        seen = request.after_seq or len(self.cloud.events)
        while True:
            waiting = self.cloud.new_event
            while seen < len(self.cloud.events):
                seen += 1
                yield self.cloud.events[seen - 1]
                await _fire(self.cloud.before["event"])
            await waiting.wait()

    async def _GetQuota(self, request: Any) -> Any:
        items = [quota_pb2.QuotaItem(resource=name, limit=limit, in_use=1) for name, limit in self.cloud.limits.items()]
        return quota_pb2.Quota(project_id=request.project_id or "p1", items=items)

    async def _UpdateQuota(self, request: Any) -> Any:
        self.cloud.limits.update(request.limits)
        return await self._GetQuota(quota_pb2.GetQuotaRequest(project_id=request.project_id))

    async def _GetUsage(self, request: Any) -> Any:
        usage = quota_pb2.Usage(project_id="p1", server_hours=1.5)
        usage.servers.add(server_id="s1", name="web-1", hours=1.5, cpu_s=12.25, rx_bytes=1_500_000)
        return usage


async def _fire(faults: list[Fault]) -> None:
    if faults:
        fault = faults.pop(0)
        if isinstance(fault, Exception):
            raise fault
        await fault()


def _seen(row: Any) -> bool:
    """By project p1: its own rows, those for everybody, and those of no project, as most are that tests put here."""
    for_all = any(getattr(row, mark, False) for mark in ("shared", "external", "public"))
    return for_all or getattr(row, "project_id", "") in ("", "p1")


def _values(request: Any) -> list[Any]:
    return [value for _field, value in request.ListFields()]


def _copy(request: Any, row: Any) -> None:
    """Fields of the same name; what a create or an update leaves unset stays as it is."""
    for field, value in request.ListFields():
        target = row.DESCRIPTOR.fields_by_name.get(field.name)
        if target is None or target.message_type is not field.message_type:
            continue
        if target.is_repeated:
            row.ClearField(field.name)
            getattr(row, field.name).MergeFrom(value)
        elif target.message_type is not None:
            getattr(row, field.name).CopyFrom(value)
        else:
            setattr(row, field.name, value)
