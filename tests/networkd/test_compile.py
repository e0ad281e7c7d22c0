"""Pure output: port filter, NAT, dnsmasq, metadata against golden files; refusals of the wire.

A golden file that is missing is written and the test fails once: look at it before you commit it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemonkit.desired import key_of
from daemonkit.errors import ConfigError
from networkd import wire
from networkd.compile import dnsmasq, filter, metadata, nat, nft
from networkd.drivers.kernel import check_foreign_rules
from networkd.spec.desired import Desired
from networkd.spec.picture import Chain, NftSet, Table
from skyrack.v1 import agent_pb2
from tests.networkd.objects import (
    EXT_NET,
    NET,
    OPEN,
    OTHER_NET,
    WEB,
    external,
    group,
    members,
    neighbour,
    port,
    port_id,
    router,
    rule,
    segment,
)

GOLDEN = Path(__file__).with_name("golden")


def desired(*objects: agent_pb2.DesiredObject) -> Desired:
    return wire.desired_of({key_of(o): o for o in objects})


def golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if not path.exists():
        path.write_text(text)
        pytest.fail(f"{path} was missing and is written now")
    assert text == path.read_text()


def everything() -> Desired:
    v6 = agent_pb2.GroupRule(ingress=True, ipv6=True, protocol="icmpv6", port_min=128, port_max=-1)
    pairs = [agent_pb2.AddressPair(ip="192.168.0.64/28"), agent_pb2.AddressPair(ip="192.168.0.70", mac="00:00:5E:00:01:01")]
    web = group(
        WEB, rule("tcp", 22, 22, cidr="203.0.113.0/24"), rule("tcp", 8000, 8080), rule("udp"), rule("icmp", 8, 0), rule("89"),
        rule("tcp", 443, 443, remote=OPEN), rule(cidr="0.0.0.0/0", ingress=False), v6,
    )  # fmt: skip
    routes = [agent_pb2.Route(destination="10.9.0.0/16", nexthop="192.168.0.9")]
    return desired(
        segment(vteps=("10.20.0.2",), dns_servers=["9.9.9.9"], routes=routes),
        segment(OTHER_NET, 200, dhcp=False), external(), web, group(OPEN, rule("icmp")), members(OPEN, 12, 13),
        port(11, NET, WEB, OPEN, allowed_pairs=pairs), port(12, NET, OPEN, admin_up=False), port(13, NET, port_security=False),
        port(11, OTHER_NET, WEB), neighbour(14, "10.20.0.2"),
    )  # fmt: skip


def test_port_filter() -> None:
    golden("filter.nft", nft.whole(filter.tables(everything(), {NET: 1, OTHER_NET: 2})))


def test_nat() -> None:
    spec = desired(segment(), external(), router(("203.0.113.100", "192.168.0.11"), ("203.0.113.101", "192.168.0.12")))
    golden("router.nft", nft.whole(nat.tables(spec.routers["4444"])))


def test_nat_delta_of_one_floating_ip_changes_two_elements() -> None:
    one, two = (router(("203.0.113.100", "192.168.0.11"), *more) for more in ((), (("203.0.113.101", "192.168.0.12"),)))
    before, after = (nat.tables(desired(r).routers["4444"]) for r in (one, two))
    assert nft.delta(before, after).splitlines() == [
        "add element ip sk_router floating { 203.0.113.101 : 192.168.0.12 }",
        "add element ip sk_router fixed { 192.168.0.12 : 203.0.113.101 }",
    ]
    assert nft.delta(after, before).splitlines() == [
        "delete element ip sk_router floating { 203.0.113.101 : 192.168.0.12 }",
        "delete element ip sk_router fixed { 192.168.0.12 : 203.0.113.101 }",
    ]


def test_dnsmasq() -> None:
    spec = everything()
    service = dnsmasq.service(spec, spec.segments[NET])
    golden("dnsmasq.conf", service.conf)
    assert service.hosts[port_id(11)] == "02:aa:00:00:00:0b,192.168.0.11,web-11\n"
    assert service.names[port_id(14)] == "192.168.0.14 web-14.lab.internal web-14\n", "neighbours have names too"
    assert not any("set:" in line for line in service.hosts.values()), "dnsmasq dies of it"


def test_member_changes_touch_one_set() -> None:
    base = (segment(), group(WEB, rule("tcp", 80, 80, remote=OPEN)), port(11, NET, WEB))
    before = filter.tables(desired(*base, members(OPEN, 12, 13)), {NET: 1})
    after = filter.tables(desired(*base, members(OPEN, 13, 14)), {NET: 1})
    assert [line.split(" {")[0].split("m4_")[0] for line in nft.delta(before, after).splitlines()] == [
        "delete element bridge sk_filter ",
        "add element bridge sk_filter ",
    ]


def test_no_difference_is_no_transaction() -> None:
    tables = filter.tables(everything(), {NET: 1, OTHER_NET: 2})
    assert nft.delta(tables, tables) == ""


def test_a_changed_frame_replaces_the_table() -> None:
    old = Table("ip", "t", {"s": NftSet("type ifname", {})}, {"c": Chain((), "type filter hook input priority 0;")})
    new = Table("ip", "t", {"s": NftSet("type ipv4_addr", {})}, {"c": Chain((), "type filter hook input priority 0;")})
    assert nft.delta([old], [new]) == nft.whole([new])
    assert nft.delta([old], []) == "table ip t {}\ndelete table ip t\n"


# ---------------------------------------------------------------- metadata


def read(path: str, ip: str = "192.168.0.11", network: str = NET) -> str | None:
    reply = metadata.answer(everything(), network, ip, path)
    return None if reply is None else reply[1].decode()


def test_metadata_documents() -> None:
    paths = [
        "/", "/openstack", "/openstack/latest", "/openstack/2018-08-27/meta_data.json", "/openstack/latest/network_data.json",
        "/openstack/latest/user_data", "/openstack/latest/vendor_data.json",
        "/latest/meta-data/", "/latest/meta-data/instance-id",
        "/latest/meta-data/public-keys/", "/latest/meta-data/public-keys/0/",
        "/2009-04-04/meta-data/public-keys/0/openssh-key",
        "/latest/meta-data/placement/availability-zone", "/latest/meta-data/local-ipv4", "/latest/user-data",
    ]  # fmt: skip
    golden("metadata.txt", "".join(f"--- {path}\n{read(path)}\n" for path in paths))


@pytest.mark.parametrize(
    "path", ["/openstack/1999-01-01", "/latest/meta-data/nothing", "/../etc/passwd", "/latest/meta-data/mac/x"]
)
def test_unknown_documents(path: str) -> None:
    assert read(path) is None


def test_metadata_only_for_who_has_the_address() -> None:
    assert read("/", ip="192.168.0.99") is None
    assert read("/", network=EXT_NET) is None
    other = read("/latest/meta-data/mac", network=OTHER_NET)
    assert other == "02:bb:00:00:00:0b", "the same address on another network is another server"


def test_accounts_become_cloud_config() -> None:
    account = agent_pb2.Account(name="ada", public_keys=["ssh-ed25519 B ada"], sudo=True)
    item = port(11)
    item.port.metadata.accounts.append(account)
    reply = metadata.answer(desired(segment(), item), NET, "192.168.0.11", "/openstack/latest/vendor_data.json")
    assert reply is not None
    head, _, body = json.loads(reply[1])["cloud-init"].partition("\n")
    assert head == "#cloud-config" and json.loads(body)["users"][1]["ssh_authorized_keys"] == ["ssh-ed25519 B ada"]


# ---------------------------------------------------------------- the wire


def spoiled(**fields: object) -> str:
    item = port(11)
    for field, value in fields.items():
        setattr(item.port, field, value)
    return desired(segment(), item).faults.get(f"port/{port_id(11)}", "")


def test_malformed_objects_are_refused_alone() -> None:
    bad, good = port(11), port(12)
    bad.port.device = 'x" drop; }'
    held = desired(segment(), bad, good)
    assert list(held.ports) == [port_id(12)]
    assert "device" in held.faults[f"port/{port_id(11)}"]


@pytest.mark.parametrize(
    "fields",
    [
        {"device": "eth0"},
        {"device": "tap0123456789abcdef"},
        {"mac": "02:aa"},
        {"mac": "zz:aa:00:00:00:01"},
        {"network_id": "a b"},
    ],
)
def test_what_a_port_may_not_be(fields: dict[str, object]) -> None:
    assert spoiled(**fields)


@pytest.mark.parametrize(
    "bad",
    [
        rule("tcp", 80, 70000), rule("icmp", 300, 0), rule("999"), rule("tcp; drop"), rule(cidr="10.0.0.0/33"),
        rule(cidr="fd00::/8"), rule(remote="x y"),
    ],
)  # fmt: skip
def test_what_a_rule_may_not_be(bad: agent_pb2.GroupRule) -> None:
    assert desired(group(WEB, bad)).faults


def test_a_name_that_is_no_dns_label_is_left_out() -> None:
    item = port(11)
    item.port.hostname = "evil\nhost,1.2.3.4"
    assert desired(segment(), item).ports[port_id(11)].hostname == ""


def test_update_parses_only_what_changed() -> None:
    objects = {key_of(o): o for o in (segment(), port(11), port(12))}
    held = wire.desired_of(objects)
    del objects[f"port/{port_id(12)}"]
    after = wire.update(held, objects, {f"port/{port_id(12)}"})
    assert list(after.ports) == [port_id(11)] and after.ports[port_id(11)] is held.ports[port_id(11)]


# ---------------------------------------------------------------- other programs' rules

FOREIGN = (
    "table bridge other {\n\tchain c {\n\t\ttype filter hook forward priority 0; policy accept;\n"
    "\t\tct state established accept\n\t}\n}\n"
)


def test_foreign_bridge_conntrack_is_refused() -> None:
    with pytest.raises(ConfigError, match="connection tracking"):
        check_foreign_rules(FOREIGN)
    assert check_foreign_rules(FOREIGN.replace("other", "sk_filter").replace("ct state", "ct state")) == []


def test_foreign_forward_drop_is_warned_of() -> None:
    text = "table ip filter {\n\tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n"
    assert "drops forwarded" in check_foreign_rules(text)[0]
    assert check_foreign_rules("table ip x {\n}\n") == []
