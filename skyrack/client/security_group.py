"""Security groups: stateful allow-lists on ports, with their rules and the accounts they let in."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty

from skyrack.client.collection import Collection, Ref, id_of, new_key
from skyrack.client.wire import enum_number, to_record
from skyrack.v1 import security_group_pb2 as pb


@dataclass(frozen=True)
class SecurityGroupRule:
    id: str
    security_group_id: str
    direction: str
    """INGRESS or EGRESS."""
    ipv6: bool
    protocol: str
    """"" = any."""
    port_min: int
    """tcp, udp: port; icmp: type; -1 = any."""
    port_max: int
    """tcp, udp: port; icmp: code; -1 = any."""
    remote_cidr: str
    remote_group_id: str
    description: str


@dataclass(frozen=True)
class SecurityGroupAccount:
    name: str
    keypair_names: tuple[str, ...]
    sudo: bool
    public_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class SecurityGroup:
    id: str
    name: str
    project_id: str
    description: str
    rules: tuple[SecurityGroupRule, ...]
    created_at: datetime.datetime | None
    accounts: tuple[SecurityGroupAccount, ...]


class SecurityGroups(Collection[SecurityGroup]):
    kind, service, record = "security_group", "SecurityGroupService", SecurityGroup

    async def create(self, name: str, *, description: str = "", accounts: Sequence[SecurityGroupAccount] = ()) -> SecurityGroup:
        """Starts with: everything out, nothing in."""
        request = pb.CreateSecurityGroupRequest(
            name=name, description=description, accounts=_accounts(accounts), idempotency_key=new_key()
        )
        return await self._one("CreateSecurityGroup", request, pb.SecurityGroup)

    async def get(self, ref: Ref) -> SecurityGroup:
        return await self._one("GetSecurityGroup", pb.GetSecurityGroupRequest(security_group_id=id_of(ref)), pb.SecurityGroup)

    def list(self, *, name: str = "", all_projects: bool = False) -> AsyncIterator[SecurityGroup]:
        """`all_projects`: admins."""
        request = pb.ListSecurityGroupsRequest(name=name, all_projects=all_projects)
        return self._pages("ListSecurityGroups", request, pb.ListSecurityGroupsResponse, "security_groups")

    async def update(
        self,
        ref: Ref,
        *,
        name: str | None = None,
        description: str | None = None,
        accounts: Sequence[SecurityGroupAccount] | None = None,
    ) -> SecurityGroup:
        """`accounts` given replaces them all; None leaves them."""
        request = pb.UpdateSecurityGroupRequest(
            security_group_id=id_of(ref),
            name=name,
            description=description,
            accounts=_accounts(accounts or ()),
            replace_accounts=accounts is not None,
        )
        return await self._one("UpdateSecurityGroup", request, pb.SecurityGroup)

    async def delete(self, ref: Ref) -> None:
        """Errors: Conflict while in use, or "default"."""
        await self._delete("DeleteSecurityGroup", pb.DeleteSecurityGroupRequest(security_group_id=id_of(ref)), Empty)

    async def add_rule(
        self,
        ref: Ref,
        *,
        direction: str = "INGRESS",
        protocol: str = "",
        port_min: int | None = None,
        port_max: int | None = None,
        remote_cidr: str = "",
        remote_group: Ref | None = None,
        ipv6: bool = False,
        description: str = "",
    ) -> SecurityGroupRule:
        """Works on running servers at once. `port_min`, `port_max` None = any. Errors: InvalidArgument, AlreadyExists."""
        request = pb.CreateSecurityGroupRuleRequest(
            security_group_id=id_of(ref),
            direction=pb.Direction.ValueType(enum_number(pb.Direction.DESCRIPTOR, direction)),
            ipv6=ipv6,
            protocol=protocol,
            port_min=port_min,
            port_max=port_max,
            remote_cidr=remote_cidr,
            remote_group_id=id_of(remote_group),
            description=description,
            idempotency_key=new_key(),
        )
        return to_record(SecurityGroupRule, await self._call("CreateSecurityGroupRule", request, pb.SecurityGroupRule))

    async def delete_rule(self, rule: Ref) -> None:
        """Cuts the flows it let in."""
        await self._delete("DeleteSecurityGroupRule", pb.DeleteSecurityGroupRuleRequest(rule_id=id_of(rule)), Empty)


def _accounts(accounts: Sequence[SecurityGroupAccount]) -> Sequence[pb.SecurityGroupAccount]:
    return [
        pb.SecurityGroupAccount(
            name=account.name, keypair_names=account.keypair_names, sudo=account.sudo, public_keys=account.public_keys
        )
        for account in accounts
    ]
