"""NodeService."""

from __future__ import annotations

from typing import Any

from google.protobuf.empty_pb2 import Empty

from controllerd.api.rpc.gate import Context, Gate, page, rendered, timestamp
from controllerd.app.node import Nodes, NodeView
from controllerd.domain.node import AgentRecord
from skyrack.v1 import node_pb2 as pb
from skyrack.v1 import node_pb2_grpc


class NodeService(node_pb2_grpc.NodeServiceServicer):
    def __init__(self, gate: Gate, nodes: Nodes) -> None:
        self._gate, self._nodes = gate, nodes

    async def GetNode(self, request: pb.GetNodeRequest, context: Context) -> pb.Node:
        caller = await self._gate.caller(context)
        return render(await self._nodes.get(caller, request.node_id))

    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.ListNodesResponse:
        caller = await self._gate.caller(context)
        found = await self._nodes.list(caller, request.name, page(request))
        return pb.ListNodesResponse(nodes=await rendered(render, found.items), next_page_token=found.next_token)

    async def UpdateNode(self, request: pb.UpdateNodeRequest, context: Context) -> pb.Node:
        caller = await self._gate.caller(context)
        if not request.HasField("enabled"):
            return render(await self._nodes.get(caller, request.node_id))
        return render(await self._nodes.set_enabled(caller, request.node_id, request.enabled))

    async def DeleteNode(self, request: pb.DeleteNodeRequest, context: Context) -> Empty:
        caller = await self._gate.caller(context)
        await self._nodes.delete(caller, request.node_id)
        return Empty()

    async def CreateJoinToken(self, request: pb.CreateJoinTokenRequest, context: Context) -> pb.JoinToken:
        caller = await self._gate.caller(context)
        token, expires_at = await self._nodes.create_join_token(caller, request.name, request.roles, request.lifetime_s)
        return pb.JoinToken(token=token, expires_at=timestamp(expires_at))

    async def JoinNode(self, request: pb.JoinNodeRequest, context: Context) -> pb.JoinNodeResponse:
        joined = await self._nodes.join(request.secret, request.name, request.csr_pem)
        return pb.JoinNodeResponse(
            certificate_pem=joined.certificate_pem, ca_pem=joined.ca_pem, roles=joined.roles, controllers=joined.controllers
        )


def render(view: NodeView) -> pb.Node:
    compute: dict[str, Any] = {}
    for agent in view.agents:
        compute = compute or agent.inventory.get("compute", {})  # type: ignore[assignment]
    held = view.held
    return pb.Node(
        id=view.node.id, name=view.node.name, roles=view.node.roles, state=state_of(view), enabled=view.node.enabled,
        agents=[_agent(a, view.clock_offsets_s.get(a.kind)) for a in view.agents], joined_at=timestamp(view.node.joined_at),
        vcpus=compute.get("vcpus", 0), memory_mib=int(compute.get("memory_mib", 0)), disk_gib=int(compute.get("disk_gib", 0)),
        vcpus_claimed=held.get("vcpus", 0), memory_mib_claimed=held.get("memory_mib", 0),
        disk_gib_claimed=held.get("disk_gib", 0), servers=held.get("servers", 0),
        hypervisor=compute.get("hypervisor", ""), virt_type=compute.get("virt_type", ""),
    )  # fmt: skip


def state_of(view: NodeView) -> pb.NodeState.ValueType:
    """UP when every agent that its roles need is in session; JOINED before any of them ever was."""
    if not view.agents and view.node.agents():
        return pb.NODE_STATE_JOINED
    up = {a.kind for a in view.agents if a.connected}
    return pb.NODE_STATE_UP if view.node.agents() <= up else pb.NODE_STATE_DOWN


def _agent(agent: AgentRecord, clock_offset_s: float | None) -> pb.NodeAgent:
    return pb.NodeAgent(
        kind=agent.kind, connected=agent.connected, last_seen_at=timestamp(agent.last_seen_at), version=agent.version,
        address=str(agent.inventory.get("address", "")),
        clock_offset_s=None if clock_offset_s is None else round(clock_offset_s, 3),
    )  # fmt: skip
