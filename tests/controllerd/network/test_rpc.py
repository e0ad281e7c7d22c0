"""The three services over a real connection: what a client with stubs alone sees."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace

import grpc
import pytest

from controllerd.api.rpc.gate import Gate
from controllerd.api.rpc.network import NetworkService
from controllerd.api.rpc.router import RouterService
from controllerd.api.rpc.security_group import SecurityGroupService
from controllerd.app.cloud import Cloud
from controllerd.app.floating_ip import FloatingIps
from controllerd.app.network import Networks
from controllerd.app.port import Ports
from controllerd.app.router import Routers
from controllerd.app.security_group import SecurityGroups
from controllerd.app.subnet import Subnets
from controllerd.domain.policy import Caller
from daemonkit import rpc
from daemonkit.errors import Conflict, InvalidArgument, SkyrackError, Unauthenticated
from skyrack.v1 import network_pb2, network_pb2_grpc, router_pb2, router_pb2_grpc, security_group_pb2, security_group_pb2_grpc
from tests.controllerd.network.rack import add_node


class Doorkeeper:
    """Tokens are names of callers."""

    def __init__(self, **callers: Caller) -> None:
        self._callers = callers

    async def caller_of(self, token: str) -> Caller:
        if token not in self._callers:
            raise Unauthenticated("unknown token")
        return self._callers[token]


@pytest.fixture
async def api(cloud: Cloud, admin: Caller, member: Caller) -> AsyncIterator[SimpleNamespace]:
    gate = Gate(Doorkeeper(admin=admin, member=member))
    server = rpc.Server(cloud.runtime.new_id)
    network_pb2_grpc.add_NetworkServiceServicer_to_server(
        NetworkService(gate, Networks(cloud), Subnets(cloud), Ports(cloud)), server.grpc
    )
    router_pb2_grpc.add_RouterServiceServicer_to_server(RouterService(gate, Routers(cloud), FloatingIps(cloud)), server.grpc)
    security_group_pb2_grpc.add_SecurityGroupServiceServicer_to_server(
        SecurityGroupService(gate, SecurityGroups(cloud)), server.grpc
    )
    port = server.grpc.add_insecure_port("127.0.0.1:0")
    await server.start([])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield SimpleNamespace(
            net=network_pb2_grpc.NetworkServiceStub(channel), router=router_pb2_grpc.RouterServiceStub(channel),
            group=security_group_pb2_grpc.SecurityGroupServiceStub(channel),
        )  # fmt: skip
    await server.stop(0)


def as_(name: str) -> dict[str, object]:
    return {"metadata": (("authorization", f"Bearer {name}"),), "timeout": 10}


async def test_a_tenant_builds_its_network(api: SimpleNamespace, cloud: Cloud) -> None:
    node = await cloud.database.write(lambda tx: add_node(tx, "g1", "192.168.1.1", gateway=True))
    request = network_pb2.CreateNetworkRequest(name="internet", external=True)
    outside = await api.net.CreateNetwork(request, **as_("admin"))
    request = network_pb2.CreateSubnetRequest(network_id=outside.id, cidr="203.0.113.0/24")
    await api.net.CreateSubnet(request, **as_("admin"))
    network = await api.net.CreateNetwork(network_pb2.CreateNetworkRequest(name="private"), **as_("member"))
    assert (network.mtu, network.vni) == (1450, 0)  # which tunnel it is concerns admins only
    get = network_pb2.GetNetworkRequest(network_id=network.id)
    assert (await api.net.GetNetwork(get, **as_("admin"))).vni > 0
    subnet = await api.net.CreateSubnet(
        network_pb2.CreateSubnetRequest(network_id=network.id, cidr="10.0.0.0/24", dns_servers=["203.0.113.53"]),
        **as_("member"),
    )
    assert subnet.dhcp and subnet.gateway_ip == "10.0.0.1" and subnet.pools[0].last == "10.0.0.254"
    router = await api.router.CreateRouter(
        router_pb2.CreateRouterRequest(name="r", external_network_id=outside.id), **as_("member")
    )
    assert router.snat and router.external_ip == "203.0.113.2" and not router.node
    router = await api.router.AddRouterInterface(
        router_pb2.AddRouterInterfaceRequest(router_id=router.id, subnet_id=subnet.id), **as_("member")
    )
    assert [i.ip for i in router.interfaces] == ["10.0.0.1"] and router.state == router_pb2.ROUTER_STATE_BUILD
    seen = await api.router.GetRouter(router_pb2.GetRouterRequest(router_id=router.id), **as_("admin"))
    assert seen.node == node.name
    port = await api.net.CreatePort(network_pb2.CreatePortRequest(network_id=network.id, name="p"), **as_("member"))
    assert port.fixed_ips[0].ip == "10.0.0.3" and port.state == network_pb2.PORT_STATE_DOWN and port.port_security
    request = router_pb2.CreateFloatingIpRequest(external_network_id=outside.id, port_id=port.id)
    floating = await api.router.CreateFloatingIp(request, **as_("member"))
    assert (floating.fixed_ip, floating.router_id) == ("10.0.0.3", router.id)
    unmap = router_pb2.UpdateFloatingIpRequest(floating_ip_id=floating.id, port_id="")
    assert (await api.router.UpdateFloatingIp(unmap, **as_("member"))).state == router_pb2.FLOATING_IP_STATE_DOWN
    listed = await api.net.ListPorts(network_pb2.ListPortsRequest(network_id=network.id), **as_("member"))
    assert sorted(p.purpose for p in listed.ports) == ["", "dhcp", "router_interface"]


async def test_groups_with_rules_and_accounts(api: SimpleNamespace) -> None:
    pb = security_group_pb2
    group = await api.group.CreateSecurityGroup(pb.CreateSecurityGroupRequest(name="web"), **as_("member"))
    assert sorted((r.direction, r.ipv6) for r in group.rules) == [(pb.DIRECTION_EGRESS, False), (pb.DIRECTION_EGRESS, True)]
    rule = await api.group.CreateSecurityGroupRule(
        pb.CreateSecurityGroupRuleRequest(
            security_group_id=group.id, direction=pb.DIRECTION_INGRESS, protocol="tcp", port_min=80
        ), **as_("member"),
    )  # fmt: skip
    assert (rule.port_min, rule.port_max) == (80, 80)
    with pytest.raises(grpc.RpcError) as refused:
        request = pb.CreateSecurityGroupRuleRequest(security_group_id=group.id, protocol="tcp")
        await api.group.CreateSecurityGroupRule(request, **as_("member"))
    error = rpc.from_rpc_error(refused.value)
    assert isinstance(error, InvalidArgument) and error.metadata["field"] == "direction"
    await api.group.DeleteSecurityGroupRule(pb.DeleteSecurityGroupRuleRequest(rule_id=rule.id), **as_("member"))
    listed = await api.group.ListSecurityGroups(pb.ListSecurityGroupsRequest(), **as_("member"))
    assert [len(g.rules) for g in listed.security_groups] == [2]
    await api.group.DeleteSecurityGroup(pb.DeleteSecurityGroupRequest(security_group_id=group.id), **as_("member"))


async def test_errors_keep_their_kind(api: SimpleNamespace) -> None:
    async def refusal(call: object) -> SkyrackError:
        with pytest.raises(grpc.RpcError) as refused:
            await call  # type: ignore[misc]
        return rpc.from_rpc_error(refused.value)

    network = await api.net.CreateNetwork(network_pb2.CreateNetworkRequest(name="n"), **as_("member"))
    request = network_pb2.CreateSubnetRequest(network_id=network.id, cidr="10.0.0.1/24")
    error = await refusal(api.net.CreateSubnet(request, **as_("member")))
    assert isinstance(error, InvalidArgument) and error.metadata["field"] == "cidr"
    request = network_pb2.CreateSubnetRequest(network_id=network.id, cidr="10.0.0.0/24")
    subnet = await api.net.CreateSubnet(request, **as_("member"))
    await api.net.CreatePort(network_pb2.CreatePortRequest(network_id=network.id), **as_("member"))
    delete = network_pb2.DeleteSubnetRequest(subnet_id=subnet.id)
    assert isinstance(await refusal(api.net.DeleteSubnet(delete, **as_("member"))), Conflict)
    assert isinstance(await refusal(api.net.DeleteSubnet(delete, **as_("nobody"))), Unauthenticated)
