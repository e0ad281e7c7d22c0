"""Networks, subnets and ports through the app room."""

from __future__ import annotations

import pytest

from controllerd.app.cloud import Cloud, Once
from controllerd.app.network import Networks, NetworkView
from controllerd.app.port import NewPort, Ports, make_port, release_ports, take_port
from controllerd.app.subnet import Subnets
from controllerd.domain.address import AddressPool, HostRoute
from controllerd.domain.page import Page
from controllerd.domain.policy import Caller
from controllerd.domain.subnet import Subnet
from controllerd.store import port as port_store
from daemonkit.errors import (
    Conflict,
    Forbidden,
    InvalidArgument,
    NetworkFailed,
    NotFound,
    QuotaExceeded,
    SkyrackError,
)

ANEW = Once("", "", "")


async def private(cloud: Cloud, caller: Caller, cidr: str = "10.0.0.0/24", **options) -> tuple[NetworkView, Subnet]:
    network = await Networks(cloud).create(caller, "private", False, False, ANEW)
    return network, await Subnets(cloud).create(caller, network.network.id, "", cidr, ANEW, **options)


async def test_addresses_are_the_lowest_free_ones(cloud: Cloud, member: Caller) -> None:
    network, subnet = await private(cloud, member)
    assert (subnet.gateway_ip, subnet.pools) == ("10.0.0.1", (AddressPool("10.0.0.2", "10.0.0.254"),))
    ports = Ports(cloud)
    made = [await ports.create(member, NewPort(network.network.id), ANEW) for _ in range(3)]
    assert [p.fixed_ips[0].ip for p in made] == ["10.0.0.3", "10.0.0.4", "10.0.0.5"]  # .2 answers DHCP
    await ports.delete(member, made[1].port.id)
    again = await ports.create(member, NewPort(network.network.id), ANEW)
    assert again.fixed_ips[0].ip == "10.0.0.4"
    assert again.port.mac.startswith("fa:16:3e:") and again.port.state == "DOWN" and len(again.group_ids) == 1
    purposes = [p.port.purpose for p in (await ports.list(member, Page())).items]
    assert sorted(purposes) == ["", "", "", "dhcp"]


async def test_a_full_pool_and_several_subnets(cloud: Cloud, member: Caller) -> None:
    network, _ = await private(cloud, member, "10.0.0.0/29", pools=(AddressPool("10.0.0.2", "10.0.0.3"),))
    ports = Ports(cloud)
    await ports.create(member, NewPort(network.network.id), ANEW)
    with pytest.raises(Conflict, match="no address is free"):
        await ports.create(member, NewPort(network.network.id), ANEW)
    outside_the_pool = await ports.create(member, NewPort(network.network.id, fixed_ips=(("", "10.0.0.6"),)), ANEW)
    assert outside_the_pool.fixed_ips[0].ip == "10.0.0.6"
    second = await Subnets(cloud).create(member, network.network.id, "", "10.0.1.0/24", ANEW)
    made = await ports.create(member, NewPort(network.network.id), ANEW)
    assert (made.fixed_ips[0].subnet_id, made.fixed_ips[0].ip) == (second.id, "10.0.1.3")


@pytest.mark.parametrize(
    ("options", "field", "says"),
    [
        ({"fixed_ips": (("", "10.9.0.1"),)}, "fixed_ips", "no subnet"),
        ({"fixed_ips": (("", "10.0.0.255"),)}, "fixed_ips", "broadcast"),
        ({"fixed_ips": (("", "10.0.0.2"),)}, "fixed_ips", "taken"),
        ({"fixed_ips": (("", "nonsense"),)}, "fixed_ips", "IPv4"),
        ({"fixed_ips": (("0" * 8, ""),)}, "fixed_ips", "not of this network"),
        ({"fixed_ips": (("", ""),) * 11}, "fixed_ips", "at most 10"),
        ({"mac": "01:00:00:00:00:01"}, "mac", "unicast"),
        ({"mac": "zz"}, "mac", "MAC"),
        ({"group_ids": ("nobody",)}, "security_group_ids", "not found"),
        ({"name": "a\nb"}, "name", "control"),
    ],
)
async def test_bad_ports_name_the_field(cloud: Cloud, member: Caller, options, field: str, says: str) -> None:
    network, _ = await private(cloud, member)
    with pytest.raises(SkyrackError, match=says) as refused:
        await Ports(cloud).create(member, NewPort(network.network.id, **options), ANEW)
    assert refused.value.metadata["field"] == field
    assert len((await Ports(cloud).list(member, Page())).items) == 1


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"cidr": "10.0.0.1/24"}, "cidr"),
        ({"cidr": "10.0.0.0"}, "cidr"),
        ({"cidr": "10.0.0.0/30"}, "cidr"),
        ({"cidr": "10.0.0.0/7"}, "cidr"),
        ({"cidr": "0.0.0.0/8"}, "cidr"),
        ({"cidr": "127.0.0.0/16"}, "cidr"),
        ({"cidr": "169.254.0.0/24"}, "cidr"),
        ({"cidr": "224.1.0.0/16"}, "cidr"),
        ({"cidr": "fd00::/64"}, "cidr"),
        ({"cidr": "10.0.0.0/255.255.255.0"}, "cidr"),
        ({"cidr": "192.168.0.128/25"}, "cidr"),
        ({"gateway_ip": "10.1.0.1"}, "gateway_ip"),
        ({"gateway_ip": "10.0.0.0"}, "gateway_ip"),
        ({"pools": (AddressPool("10.0.0.1", "10.0.0.9"),)}, "pools"),
        ({"pools": (AddressPool("10.0.0.9", "10.0.0.3"),)}, "pools"),
        ({"pools": (AddressPool("10.0.0.2", "10.0.0.9"), AddressPool("10.0.0.9", "10.0.0.12"))}, "pools"),
        ({"pools": (AddressPool("10.0.0.2", "10.1.0.9"),)}, "pools"),
        ({"dns_servers": ("one",)}, "dns_servers"),
        ({"dns_servers": ("8.8.8.8",) * 2}, "dns_servers"),
        ({"dns_servers": tuple(f"8.8.8.{n}" for n in range(6))}, "dns_servers"),
        ({"routes": (HostRoute("10.3.0.1/16", "10.0.0.9"),)}, "routes"),
        ({"routes": (HostRoute("10.3.0.0/16", "10.1.0.9"),)}, "routes"),
    ],
)
async def test_bad_subnets_name_the_field(cloud: Cloud, member: Caller, options, field: str) -> None:
    network, _ = await private(cloud, member, "192.168.0.0/24")
    values = {"cidr": "10.0.0.0/24", **options}
    with pytest.raises(InvalidArgument) as refused:
        await Subnets(cloud).create(member, network.network.id, "", values.pop("cidr"), ANEW, **values)
    assert refused.value.field == field


async def test_the_gateway_may_be_anywhere_or_nowhere(cloud: Cloud, member: Caller) -> None:
    _, middle = await private(cloud, member, "10.0.0.0/29", gateway_ip="10.0.0.3")
    assert middle.pools == (AddressPool("10.0.0.1", "10.0.0.2"), AddressPool("10.0.0.4", "10.0.0.6"))
    high, low = AddressPool("10.0.0.5", "10.0.0.6"), AddressPool("10.0.0.2", "10.0.0.3")
    _, ordered = await private(cloud, member, "10.0.0.0/29", pools=(high, low))
    assert ordered.pools == (low, high)
    _, none = await private(cloud, member, "10.0.0.0/29", gateway_ip="", dhcp=False)
    assert none.pools == (AddressPool("10.0.0.1", "10.0.0.6"),)


async def test_who_sees_and_uses_what(cloud: Cloud, admin: Caller, member: Caller, caller) -> None:
    networks, subnets, ports, stranger = Networks(cloud), Subnets(cloud), Ports(cloud), await caller("beta")
    network, subnet = await private(cloud, member)
    for refused in (
        networks.get(stranger, network.network.id), networks.delete(stranger, network.network.id),
        subnets.get(stranger, subnet.id), subnets.delete(stranger, subnet.id),
        ports.create(stranger, NewPort(network.network.id), ANEW),
    ):  # fmt: skip
        with pytest.raises(NotFound):
            await refused
    for options in ((True, False), (False, True)):
        with pytest.raises(Forbidden):
            await networks.create(member, "n", *options, ANEW)
    shared = await networks.create(admin, "shared", True, False, ANEW)
    await subnets.create(admin, shared.network.id, "", "10.5.0.0/24", ANEW)
    outside = await networks.create(admin, "internet", False, True, ANEW)
    assert outside.network.vni == 0
    with pytest.raises(InvalidArgument, match="dhcp"):
        await subnets.create(admin, outside.network.id, "", "203.0.113.0/24", ANEW, dhcp=True)
    await subnets.create(admin, outside.network.id, "", "203.0.113.0/24", ANEW)
    assert {n.network.name for n in (await networks.list(stranger, "", None, False, Page())).items} == {"shared", "internet"}
    assert [n.network.name for n in (await networks.list(stranger, "", True, False, Page())).items] == ["internet"]
    with pytest.raises(Forbidden):
        await subnets.create(stranger, shared.network.id, "", "10.6.0.0/24", ANEW)
    with pytest.raises(InvalidArgument, match="external"):
        await ports.create(stranger, NewPort(outside.network.id), ANEW)
    with pytest.raises(Forbidden):
        await ports.create(stranger, NewPort(shared.network.id, port_security=False), ANEW)
    with pytest.raises(InvalidArgument, match="gateway"):
        await ports.create(stranger, NewPort(shared.network.id, fixed_ips=(("", "10.5.0.1"),)), ANEW)
    made = await ports.create(stranger, NewPort(shared.network.id), ANEW)
    with pytest.raises(Conflict, match=made.port.id):
        await networks.update(admin, shared.network.id, shared=False)
    with pytest.raises(Conflict, match=made.port.id):
        await networks.delete(admin, shared.network.id)
    with pytest.raises(NotFound):
        await ports.get(member, made.port.id)


async def test_a_network_goes_with_its_subnets(cloud: Cloud, member: Caller) -> None:
    network, subnet = await private(cloud, member)
    port = await Ports(cloud).create(member, NewPort(network.network.id), ANEW)
    for delete in (Networks(cloud).delete(member, network.network.id), Subnets(cloud).delete(member, subnet.id)):
        with pytest.raises(Conflict, match=port.port.id):
            await delete
    await Ports(cloud).delete(member, port.port.id)
    await Networks(cloud).delete(member, network.network.id)
    for table in ("network", "subnet", "port", "address", "port_security_group"):
        assert await cloud.database.read(lambda tx, t=table: tx.value(f"SELECT count(*) FROM {t}")) == 0


async def test_ports_of_a_server(cloud: Cloud, member: Caller) -> None:
    network, _ = await private(cloud, member)
    free = await Ports(cloud).create(member, NewPort(network.network.id), ANEW)

    def boot(tx) -> None:
        make_port(tx, member, NewPort(network.network.id, server_id="s1", made_for_server=True, position=1))
        take_port(tx, member, free.port.id, "s1", 0)
        port_store.bind(tx, "s1", "node-1")

    await cloud.database.write(boot)
    with pytest.raises(Conflict, match="s1"):
        await cloud.database.write(lambda tx: take_port(tx, member, free.port.id, "s2", 0))
    with pytest.raises(Conflict, match="s1"):
        await Ports(cloud).delete(member, free.port.id)
    found = await cloud.database.read(lambda tx: port_store.of_server(tx, "s1"))
    assert found[0].id == free.port.id and all(p.state == "BUILD" for p in found)
    views = await cloud.database.read(lambda tx: port_store.addresses(tx, ["s1", "s2"]))
    assert [(v.network_name, v.ip) for v in views["s1"]] == [("private", "10.0.0.3"), ("private", "10.0.0.4")]
    assert not await cloud.database.read(lambda tx: port_store.ready(tx, "s1"))
    await cloud.database.write(lambda tx: tx.run("UPDATE port SET observed_state = 'FAILED', observed_fault = 'no bridge'"))
    with pytest.raises(NetworkFailed, match="no bridge"):
        await cloud.database.read(lambda tx: port_store.ready(tx, "s1"))
    for _ in range(2):
        await cloud.database.write(lambda tx: release_ports(tx, "s1"))
    left = (await Ports(cloud).get(member, free.port.id)).port
    assert (left.purpose, left.server_id, left.node_id, left.observed_state) == ("", "", "", "")
    assert len((await Ports(cloud).list(member, Page())).items) == 2  # it, and DHCP


async def test_quota_counts_tenants_ports_only(cloud: Cloud, member: Caller) -> None:
    network, _ = await private(cloud, member)
    await cloud.database.write(lambda tx: tx.run("INSERT INTO quota_limit VALUES (?, 'ports', 1)", member.project_id))
    await Ports(cloud).create(member, NewPort(network.network.id), ANEW)
    with pytest.raises(QuotaExceeded):
        await Ports(cloud).create(member, NewPort(network.network.id), ANEW)


async def test_retries_make_one(cloud: Cloud, member: Caller) -> None:
    networks, once = Networks(cloud), Once("k", "CreateNetworkRequest", "f")
    first = await networks.create(member, "n", False, False, once)
    assert await networks.create(member, "n", False, False, once) == first
    assert len((await networks.list(member, "n", None, False, Page())).items) == 1
