"""`skyrack security group ...` and `skyrack security group rule ...`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from skyrack.cli.output import Details, Done, Output, Table, whose
from skyrack.cli.parse import Pairs, PortRange, find_all, find_one
from skyrack.cli.verb import every_project, verb

if TYPE_CHECKING:
    from skyrack.client import Cloud
    from skyrack.client.security_group import SecurityGroup, SecurityGroupAccount, SecurityGroupRule

ACCOUNT = Pairs("name", "key", "sudo", required=("name", "key"))

security = click.Group("security", help="Security groups and their rules.")
group = click.Group("group", help="Stateful allow-lists on ports.")
rule = click.Group("rule", help="Lines of security groups.")
security.add_command(group)
group.add_command(rule)


def remote(row: SecurityGroupRule) -> str:
    return row.remote_cidr or (f"group {row.remote_group_id}" if row.remote_group_id else "any")


def ports(row: SecurityGroupRule) -> str:
    if row.protocol in ("icmp", "icmpv6"):
        parts = [f"{word} {n}" for word, n in (("type", row.port_min), ("code", row.port_max)) if n >= 0]
        return " ".join(parts) or "any"
    if row.port_min < 0 or row.protocol not in ("tcp", "udp"):
        return "any"
    return str(row.port_min) if row.port_min == row.port_max else f"{row.port_min}:{row.port_max}"


def ethertype(row: SecurityGroupRule) -> str:
    return "IPv6" if row.ipv6 else "IPv4"


def rule_line(row: SecurityGroupRule) -> str:
    where = "from" if row.direction == "INGRESS" else "to"
    return f"{row.direction.lower()} {ethertype(row)} {row.protocol or 'any'} {ports(row)} {where} {remote(row)}  ({row.id})"


def details(row: SecurityGroup) -> Details:
    accounts = ", ".join(f"{a.name} ({', '.join(a.keypair_names)}){' sudo' if a.sudo else ''}" for a in row.accounts)
    return Details(row, {"rules": "\n".join(rule_line(line) for line in row.rules), "accounts": accounts})


def rule_details(row: SecurityGroupRule) -> Details:
    return Details(row, {"port_min": None, "port_max": None, "ports": ports(row)})


def accounts_of(pairs: Sequence[dict[str, str]]) -> list[SecurityGroupAccount]:
    from skyrack.client.security_group import SecurityGroupAccount

    return [
        SecurityGroupAccount(
            name=pair["name"], keypair_names=tuple(pair["key"].split("+")), sudo=pair.get("sudo", "") in ("yes", "true", "1")
        )
        for pair in pairs
    ]


@verb(group, "create", help="Make a security group: all out, nothing in.")
@click.argument("name")
@click.option("--description", default="")
@click.option("--account", "accounts", multiple=True, type=ACCOUNT, help="Who may log in; keys joined by +, sudo=yes.")
async def create(cloud: Cloud, *, name: str, description: str, accounts: Sequence[dict[str, str]]) -> Output:
    row = await cloud.security_groups.create(name, description=description, accounts=accounts_of(accounts))
    return details(row)


@verb(group, "list", help="The project's security groups.")
@click.option("--name", default="")
@every_project
async def list_groups(cloud: Cloud, *, name: str, all_projects: bool) -> Output:
    rows = [row async for row in cloud.security_groups.list(name=name, all_projects=all_projects)]
    columns: dict[str, Any] = {"ID": "id", "Name": "name", "Description": "description"}
    columns["Rules"] = lambda row: len(row.rules)
    return Table(rows, whose(columns, all_projects))


@verb(group, "show", help="A security group with its rules.")
@click.argument("name")
async def show(cloud: Cloud, *, name: str) -> Output:
    return details(await cloud.security_groups.find(name))


@verb(group, "set", help="Change a security group; accounts given replace those there were.")
@click.argument("group_name", metavar="GROUP")
@click.option("--name")
@click.option("--description")
@click.option("--account", "accounts", multiple=True, type=ACCOUNT)
@click.option("--no-account", is_flag=True)
async def set_group(cloud: Cloud, *, group_name: str, **options: Any) -> Output:
    row = await cloud.security_groups.update(
        await cloud.security_groups.find(group_name),
        name=options["name"],
        description=options["description"],
        accounts=accounts_of(options["accounts"]) if options["accounts"] or options["no_account"] else None,
    )
    return details(row)


@verb(group, "delete", help="Delete security groups nobody uses.")
@click.argument("names", nargs=-1, required=True, metavar="GROUP...")
async def delete(cloud: Cloud, *, names: Sequence[str]) -> Output:
    rows = await find_all(cloud.security_groups, names)
    for row in rows:
        await cloud.security_groups.delete(row)
    return Done("", {"deleted": [row.id for row in rows]})


@verb(rule, "create", help="Let something in (or out). Works on running servers at once.")
@click.argument("name", metavar="GROUP")
@click.option("--protocol", default="", help='"tcp", "udp", "icmp", "icmpv6" or a number; default any.')
@click.option("--dst-port", type=PortRange(), help="22 or 8000:8010.")
@click.option("--icmp-type", type=click.IntRange(0, 255))
@click.option("--icmp-code", type=click.IntRange(0, 255))
@click.option("--remote-ip", default="", metavar="CIDR", help="Default: any address.")
@click.option("--remote-group", metavar="GROUP", help="The servers of this group.")
@click.option("--ingress", "direction", flag_value="INGRESS", default=True, type=str, help="(default)")
@click.option("--egress", "direction", flag_value="EGRESS", type=str)
@click.option("--ethertype", type=click.Choice(["IPv4", "IPv6"], case_sensitive=False), default="IPv4")
@click.option("--description", default="")
async def create_rule(cloud: Cloud, *, name: str, dst_port: tuple[int, int] | None, **options: Any) -> Output:
    low, high = dst_port or (options["icmp_type"], options["icmp_code"])
    row = await cloud.security_groups.add_rule(
        await cloud.security_groups.find(name),
        direction="EGRESS" if options["direction"] == "EGRESS" else "INGRESS",
        protocol=options["protocol"].lower(),
        port_min=low,
        port_max=high,
        remote_cidr=options["remote_ip"],
        remote_group=await find_one(cloud.security_groups, options["remote_group"]),
        ipv6=options["ethertype"].lower() == "ipv6",
        description=options["description"],
    )
    return rule_details(row)


@verb(rule, "list", help="The rules of a group, or of all the project's groups.")
@click.argument("name", metavar="[GROUP]", required=False)
async def list_rules(cloud: Cloud, *, name: str | None) -> Output:
    groups = [await cloud.security_groups.find(name)] if name else [row async for row in cloud.security_groups.list()]
    rows = [line for row in groups for line in row.rules]
    columns: dict[str, Any] = {"ID": "id", "Direction": lambda row: row.direction.lower()}
    columns |= {
        "Ethertype": ethertype,
        "Protocol": lambda row: row.protocol or "any",
        "Ports": ports,
        "Remote": remote,
        "Group": "security_group_id",
    }
    return Table(rows, columns)


@verb(rule, "delete", help="Delete rules; the flows they let in are cut.")
@click.argument("ids", nargs=-1, required=True, metavar="RULE-ID...")
async def delete_rule(cloud: Cloud, *, ids: Sequence[str]) -> Output:
    for one in ids:
        await cloud.security_groups.delete_rule(one)
    return Done("", {"deleted": list(ids)})
