"""SecurityGroupService."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.empty_pb2 import Empty

from controllerd.api.rpc.gate import Context, Gate, given, once, page, timestamp
from controllerd.app.security_group import GroupView, SecurityGroups
from controllerd.domain.security_group import ANY, Account, Rule
from daemonkit.errors import InvalidArgument
from skyrack.v1 import security_group_pb2 as pb
from skyrack.v1 import security_group_pb2_grpc


class SecurityGroupService(security_group_pb2_grpc.SecurityGroupServiceServicer):
    def __init__(self, gate: Gate, groups: SecurityGroups) -> None:
        self._gate, self._groups = gate, groups

    async def CreateSecurityGroup(self, request: pb.CreateSecurityGroupRequest, context: Context) -> pb.SecurityGroup:
        caller = await self._gate.caller(context)
        accounts = _accounts(request.accounts)
        return render(await self._groups.create(caller, request.name, request.description, accounts, once(request)))

    async def GetSecurityGroup(self, request: pb.GetSecurityGroupRequest, context: Context) -> pb.SecurityGroup:
        caller = await self._gate.caller(context)
        return render(await self._groups.get(caller, request.security_group_id))

    async def ListSecurityGroups(
        self, request: pb.ListSecurityGroupsRequest, context: Context
    ) -> pb.ListSecurityGroupsResponse:
        caller = await self._gate.caller(context)
        found = await self._groups.list(caller, request.name, request.all_projects, page(request))
        groups = [render(g) for g in found.items]
        return pb.ListSecurityGroupsResponse(security_groups=groups, next_page_token=found.next_token)

    async def UpdateSecurityGroup(self, request: pb.UpdateSecurityGroupRequest, context: Context) -> pb.SecurityGroup:
        caller = await self._gate.caller(context)
        accounts = _accounts(request.accounts) if request.replace_accounts else None
        changes = given(request, "name", "description")
        return render(await self._groups.update(caller, request.security_group_id, accounts, **changes))

    async def DeleteSecurityGroup(self, request: pb.DeleteSecurityGroupRequest, context: Context) -> Empty:
        caller = await self._gate.caller(context)
        await self._groups.delete(caller, request.security_group_id)
        return Empty()

    async def CreateSecurityGroupRule(
        self, request: pb.CreateSecurityGroupRuleRequest, context: Context
    ) -> pb.SecurityGroupRule:
        caller = await self._gate.caller(context)
        return render_rule(await self._groups.add_rule(caller, _rule(request), once(request)))

    async def DeleteSecurityGroupRule(self, request: pb.DeleteSecurityGroupRuleRequest, context: Context) -> Empty:
        caller = await self._gate.caller(context)
        await self._groups.delete_rule(caller, request.rule_id)
        return Empty()


def _rule(request: pb.CreateSecurityGroupRuleRequest) -> Rule:
    if request.direction not in (pb.DIRECTION_INGRESS, pb.DIRECTION_EGRESS):
        raise InvalidArgument("direction", "DIRECTION_INGRESS or DIRECTION_EGRESS")
    return Rule(
        id="", security_group_id=request.security_group_id, project_id="", ingress=request.direction == pb.DIRECTION_INGRESS,
        ipv6=request.ipv6, protocol=request.protocol, port_min=request.port_min if request.HasField("port_min") else ANY,
        port_max=request.port_max if request.HasField("port_max") else ANY, remote_cidr=request.remote_cidr,
        remote_group_id=request.remote_group_id, description=request.description, created_at=0.0,
    )  # fmt: skip


def _accounts(accounts: Iterable[pb.SecurityGroupAccount]) -> tuple[Account, ...]:
    return tuple(Account(a.name, a.sudo, tuple(a.keypair_names), tuple(a.public_keys)) for a in accounts)


def render(view: GroupView) -> pb.SecurityGroup:
    group = view.group
    return pb.SecurityGroup(
        id=group.id, name=group.name, project_id=group.project_id, description=group.description,
        rules=[render_rule(r) for r in view.rules], created_at=timestamp(group.created_at),
        accounts=[
            pb.SecurityGroupAccount(name=a.name, keypair_names=a.keypair_names, sudo=a.sudo, public_keys=a.public_keys)
            for a in group.accounts
        ],
    )  # fmt: skip


def render_rule(rule: Rule) -> pb.SecurityGroupRule:
    return pb.SecurityGroupRule(
        id=rule.id, security_group_id=rule.security_group_id, ipv6=rule.ipv6, protocol=rule.protocol,
        direction=pb.DIRECTION_INGRESS if rule.ingress else pb.DIRECTION_EGRESS, port_min=rule.port_min,
        port_max=rule.port_max, remote_cidr=rule.remote_cidr, remote_group_id=rule.remote_group_id,
        description=rule.description,
    )  # fmt: skip
