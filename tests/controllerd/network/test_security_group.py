"""Security groups, their rules and accounts."""

from __future__ import annotations

import pytest

from controllerd.agents.desired.network import compile_network
from controllerd.app.cloud import Cloud, Once
from controllerd.app.keypair import Keypairs
from controllerd.app.network import Networks
from controllerd.app.port import NewPort, Ports, make_port
from controllerd.app.security_group import SecurityGroups, ensure_default
from controllerd.app.subnet import Subnets
from controllerd.domain.page import Page
from controllerd.domain.policy import Caller
from controllerd.domain.security_group import Account, Rule
from controllerd.store import port as port_store
from controllerd.store import security_group as store
from controllerd.store.database import Tx
from daemonkit.errors import AlreadyExists, Conflict, InvalidArgument, NotFound, QuotaExceeded, SkyrackError
from tests.controllerd.network.rack import add_node, add_server

ANEW = Once("", "", "")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGE4xkMf1pOQjc+7BzFGYh8L8Q8UmQYlPnC4T0n1Yx8k tester"
OTHER_KEY = KEY.replace("GE4x", "HE4x")


def rule(group_id: str, protocol: str = "tcp", low: int = 22, high: int = -1, **options) -> Rule:
    fields = {"ingress": True, "ipv6": False, "remote_cidr": "", "remote_group_id": "", "description": "", **options}
    return Rule(id="", security_group_id=group_id, project_id="", protocol=protocol, port_min=low, port_max=high,
                created_at=0.0, **fields)  # fmt: skip


async def test_the_default_group_is_made_once(cloud: Cloud, member: Caller, caller) -> None:
    groups = SecurityGroups(cloud)
    ids = {await cloud.database.write(lambda tx: ensure_default(tx, member.project_id)) for _ in range(2)}
    (group_id,) = ids
    view = await groups.get(member, group_id)
    passed = {(r.ingress, r.ipv6, r.remote_group_id) for r in view.rules}
    assert passed == {(False, False, ""), (False, True, ""), (True, False, group_id), (True, True, group_id)}
    for verb in (groups.delete(member, group_id), groups.update(member, group_id, name="other")):
        with pytest.raises(Conflict):
            await verb
    with pytest.raises(AlreadyExists):
        await groups.create(member, "default", "", (), ANEW)
    with pytest.raises(NotFound):
        await groups.get(await caller("beta"), group_id)


async def test_rules_take_one_form_and_no_twins(cloud: Cloud, member: Caller) -> None:
    groups = SecurityGroups(cloud)
    group_id = (await groups.create(member, "web", "", (), ANEW)).group.id
    made = await groups.add_rule(member, rule(group_id, "6", 80, remote_cidr="192.0.2.7"), ANEW)
    assert (made.protocol, made.port_min, made.port_max, made.remote_cidr) == ("tcp", 80, 80, "192.0.2.7/32")
    anywhere = await groups.add_rule(member, rule(group_id, remote_cidr="0.0.0.0/0"), ANEW)
    with pytest.raises(AlreadyExists, match=anywhere.id):
        await groups.add_rule(member, rule(group_id), ANEW)
    await groups.add_rule(member, rule(group_id, "icmp", 8, 0), ANEW)
    await groups.add_rule(member, rule(group_id, "icmpv6", -1, ipv6=True), ANEW)
    await groups.add_rule(member, rule(group_id, "47", -1), ANEW)
    await groups.delete_rule(member, anywhere.id)
    await groups.add_rule(member, rule(group_id), ANEW)
    assert len((await groups.get(member, group_id)).rules) == 7


@pytest.mark.parametrize(
    ("protocol", "low", "high", "options", "field"),
    [
        ("http", -1, -1, {}, "protocol"),
        ("256", -1, -1, {}, "protocol"),
        ("icmpv6", -1, -1, {}, "protocol"),
        ("icmp", -1, -1, {"ipv6": True}, "protocol"),
        ("tcp", 0, 80, {}, "port_min"),
        ("tcp", 80, 79, {}, "port_max"),
        ("tcp", 80, 65536, {}, "port_max"),
        ("tcp", -1, 80, {}, "port_min"),
        ("", 22, 22, {}, "port_min"),
        ("132", 22, 22, {}, "port_min"),
        ("icmp", 256, -1, {}, "port_min"),
        ("icmp", -1, 3, {}, "port_max"),
        ("tcp", 22, -1, {"remote_cidr": "everywhere"}, "remote_cidr"),
        ("tcp", 22, -1, {"remote_cidr": "fd00::/8"}, "remote_cidr"),
        ("tcp", 22, -1, {"remote_cidr": "10.0.0.0/8", "ipv6": True}, "remote_cidr"),
        ("tcp", 22, -1, {"remote_group_id": "nobody"}, "remote_group_id"),
        ("tcp", 22, -1, {"remote_group_id": "x", "remote_cidr": "10.0.0.0/8"}, "remote_group_id"),
        ("tcp", 22, -1, {"description": "a\x00"}, "description"),
    ],
)
async def test_bad_rules_name_the_field(cloud: Cloud, member: Caller, protocol, low, high, options, field) -> None:
    groups = SecurityGroups(cloud)
    group_id = (await groups.create(member, "web", "", (), ANEW)).group.id
    with pytest.raises(InvalidArgument) as refused:
        await groups.add_rule(member, rule(group_id, protocol, low, high, **options), ANEW)
    assert refused.value.field == field
    assert len((await groups.get(member, group_id)).rules) == 2


@pytest.mark.parametrize(
    "account",
    [
        Account("root", True, (), (KEY,)),
        Account("Alice", True, (), (KEY,)),
        Account("1st", True, (), (KEY,)),
        Account("a" * 33, True, (), (KEY,)),
        Account("a b", True, (), (KEY,)),
        Account("alice", True, (), ()),
        Account("alice", True, (), ("ssh-ed25519 nonsense",)),
        Account("alice", True, (), ("-----BEGIN OPENSSH PRIVATE KEY-----",)),
        Account("alice", True, ("unknown",), ()),
    ],
)
async def test_bad_accounts_are_refused(cloud: Cloud, member: Caller, account: Account) -> None:
    with pytest.raises(SkyrackError):
        await SecurityGroups(cloud).create(member, "g", "", (account,), ANEW)
    assert not (await SecurityGroups(cloud).list(member, "", False, Page())).items


async def test_accounts_reach_the_servers_of_the_group(cloud: Cloud, member: Caller) -> None:
    groups = SecurityGroups(cloud)
    await Keypairs(cloud).create(member, "laptop", KEY, ANEW)
    alice = Account("alice", False, ("laptop",), ())
    ssh = (await groups.create(member, "ssh", "", (alice,), ANEW)).group
    admins = (await groups.create(member, "admins", "", (Account("alice", True, (), (OTHER_KEY,)),), ANEW)).group
    assert ssh.accounts[0].public_keys == (KEY,) and ssh.accounts[0].keypair_names == ("laptop",)
    network = (await Networks(cloud).create(member, "n", False, False, ANEW)).network
    await Subnets(cloud).create(member, network.id, "", "10.0.0.0/24", ANEW)

    def boot(tx: Tx) -> tuple[str, str]:
        node, server = add_node(tx, "c1", "192.168.0.1"), add_server(tx, member, "web")
        new = NewPort(network.id, server_id=server.id, group_ids=(ssh.id, admins.id), made_for_server=True)
        make_port(tx, member, new)
        port_store.bind(tx, server.id, node.id)
        return node.id, server.id

    node_id, server_id = await cloud.database.write(boot)
    accounts = await cloud.database.read(lambda tx: store.accounts_of(tx, [server_id])[server_id])
    assert accounts == (Account("alice", True, (), (KEY, OTHER_KEY)),)
    touched: set[str] = set()
    cloud.database.subscribe(touched.update)
    await groups.update(member, admins.id, accounts=())
    assert node_id in touched
    (port,) = [o for o in await cloud.database.read(lambda tx: compile_network(tx, node_id)) if o.HasField("port")]
    assert [(a.name, a.sudo, list(a.public_keys)) for a in port.port.metadata.accounts] == [("alice", False, [KEY])]


async def test_a_group_in_use_stays(cloud: Cloud, member: Caller) -> None:
    groups = SecurityGroups(cloud)
    web, db = [(await groups.create(member, name, "", (), ANEW)).group.id for name in ("web", "db")]
    await groups.add_rule(member, rule(db, low=5432, remote_group_id=web), ANEW)
    await groups.add_rule(member, rule(web, remote_group_id=web), ANEW)
    with pytest.raises(Conflict, match=db):
        await groups.delete(member, web)
    network = (await Networks(cloud).create(member, "n", False, False, ANEW)).network
    await Subnets(cloud).create(member, network.id, "", "10.0.0.0/24", ANEW)
    port = (await Ports(cloud).create(member, NewPort(network.id, group_ids=(db,)), ANEW)).port
    with pytest.raises(Conflict, match=port.id):
        await groups.delete(member, db)
    await Ports(cloud).update(member, port.id, group_ids=())
    await groups.delete(member, db)
    await groups.delete(member, web)


async def test_groups_of_another_project_cannot_be_used(cloud: Cloud, member: Caller, caller) -> None:
    groups, stranger = SecurityGroups(cloud), await caller("beta")
    foreign = (await groups.create(stranger, "theirs", "", (), ANEW)).group.id
    mine = (await groups.create(member, "mine", "", (), ANEW)).group.id
    with pytest.raises(InvalidArgument):
        await groups.add_rule(member, rule(mine, remote_group_id=foreign), ANEW)
    with pytest.raises(NotFound):
        await groups.add_rule(member, rule(foreign), ANEW)
    await cloud.database.write(
        lambda tx: tx.run("INSERT INTO quota_limit VALUES (?, 'security_group_rules', 2)", member.project_id)
    )
    with pytest.raises(QuotaExceeded):
        await groups.add_rule(member, rule(mine), ANEW)
