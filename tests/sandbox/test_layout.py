"""Pure parts: the plan, the configuration files, the scripts for ip(8) and for a host's birth."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from daemonkit.errors import InvalidArgument
from skyrack.sandbox import config, hypervisor, layout
from skyrack.sandbox.cgroup import Hierarchy, hierarchies
from skyrack.sandbox.cloud import read_env
from skyrack.sandbox.fabric import bridges, cable, socket
from skyrack.sandbox.host import setup_script
from skyrack.sandbox.layout import INTERNET, MANAGEMENT, TRAFFIC, Plug

COUNTS = {"controllers": 1, "networks": 1, "computes": 2, "storages": 1}


def test_nodes_of_the_small_rack() -> None:
    nodes = layout.nodes(COUNTS)
    assert [(n.name, n.address, n.kind.roles) for n in nodes] == [
        ("c1", "10.10.0.11", ("controller",)),
        ("n1", "10.10.0.21", ("edge", "gateway")),
        ("s1", "10.10.0.31", ("storage",)),
        ("k1", "10.10.0.41", ("compute", "edge")),
        ("k2", "10.10.0.42", ("compute", "edge")),
    ]
    assert nodes[1].plugs() == [
        Plug(MANAGEMENT, "02:00:0a:0a:00:15", "10.10.0.21"),
        Plug(TRAFFIC, "02:00:0a:14:00:15", "10.20.0.21"),
        Plug(INTERNET, "02:00:cb:00:71:15", ""),
    ]


def test_addresses_of_the_largest_rack_are_distinct_and_outside_the_public_pool() -> None:
    most = {kind.word: kind.counts[-1] for kind in layout.KINDS}
    nodes = layout.nodes(most)
    assert len({n.address for n in nodes}) == len(nodes) == sum(most.values())
    assert all(int(n.address.split(".")[-1]) < 254 for n in nodes)
    assert all(len(socket(n.name, TRAFFIC)) < 15 for n in nodes)


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ({}, "controllers: 1 or 3 are possible, not 0"),
        ({**COUNTS, "controllers": 0}, "1 or 3"),
        ({**COUNTS, "controllers": 2}, "1 or 3 are possible, not 2"),
        ({**COUNTS, "controllers": 4}, "1 or 3"),
        ({**COUNTS, "computes": -1}, "0 to 200"),
        ({**COUNTS, "networks": 10}, "networks: 0 to 9 are possible, not 10"),
    ],
)
def test_impossible_counts(counts: dict[str, int], told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        layout.nodes(counts)


@pytest.mark.parametrize("name", ["", "a-b", "A", "1a", "a" * 16, "a/b", "a b", "ä"])
def test_impossible_names(name: str) -> None:
    with pytest.raises(InvalidArgument):
        layout.check_name(name)


def test_configuration_of_a_compute_node() -> None:
    controller, *_, node = layout.nodes(COUNTS)
    files = {name: tomllib.loads(text) for name, text in config.files(node, [controller]).items()}
    assert files == {
        "networkd.toml": {
            "node": "k2",
            "controllers": ["10.10.0.11:7701"],
            "data_dir": "/var/lib/skyrack/networkd",
            "tls_dir": "/etc/skyrack/tls",
            "listen": "10.10.0.42:7710",
            "metrics_listen": "10.10.0.42:9710",
            "vtep": "10.20.0.42",
            "underlay_mtu": 1500,
        },
        "computed.toml": {
            "node": "k2",
            "controllers": ["10.10.0.11:7701"],
            "data_dir": "/var/lib/skyrack/computed",
            "tls_dir": "/etc/skyrack/tls",
            "listen": "10.10.0.42:7720",
            "metrics_listen": "10.10.0.42:9720",
            "libvirt_uri": "qemu:///system",
            "virt_type": "auto",
        },
    }


def test_configuration_of_the_others() -> None:
    nodes = {node.name: node for node in layout.nodes(COUNTS)}
    files = {name: config.files(nodes[name], [nodes["c1"]]) for name in ("c1", "n1", "s1")}
    assert tomllib.loads(files["n1"]["networkd.toml"])["gateway"] == {"enabled": True, "external_device": "ext0"}
    assert tomllib.loads(files["s1"]["storaged.toml"])["nbd_listen"] == "10.10.0.31:10809"
    assert tomllib.loads(files["c1"]["controllerd.toml"]) == {
        "node": "c1",
        "data_dir": "/var/lib/skyrack/controllerd",
        "tls_dir": "/etc/skyrack/tls",
        "api_listen": "10.10.0.11:7700",
        "agents_listen": "10.10.0.11:7701",
        "metrics_listen": "10.10.0.11:9700",
        "advertise_api": "10.10.0.11:7700",
        "advertise_agents": "10.10.0.11:7701",
    }


def test_fabric_scripts() -> None:
    assert bridges().splitlines()[:2] == [
        "link add management mtu 1500 type bridge stp_state 0 mcast_snooping 0",
        "link set management up",
    ]
    assert cable("k1", TRAFFIC.plug(41), "skyrack-rack-k1").splitlines() == [
        "link add k1-data0 mtu 1500 type veth peer name data0 address 02:00:0a:14:00:29 mtu 1500 netns skyrack-rack-k1",
        "link set k1-data0 master traffic up",
    ]


V1 = """\
tmpfs /sys/fs/cgroup tmpfs rw,relatime,mode=755 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,nodev,noexec,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,nosuid,xattr,release_agent=/lib/systemd/systemd-cgroups-agent,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0
"""


def test_control_groups_of_old_and_new_machines() -> None:
    assert hierarchies(V1) == [
        Hierarchy(Path("/sys/fs/cgroup/cpu,cpuacct"), "cpu,cpuacct"),
        Hierarchy(Path("/sys/fs/cgroup/systemd"), "name=systemd"),
        Hierarchy(Path("/sys/fs/cgroup/unified"), ""),
    ]
    old = setup_script("k1", Path("/d/k1"), hierarchies(V1), [])
    assert "mount -t cgroup -o cpu,cpuacct cgroup /sys/fs/cgroup/cpu,cpuacct" in old and "cgroup2" not in old
    new = setup_script("k1", Path("/d/k1"), [Hierarchy(Path("/sys/fs/cgroup"), "")], [])
    assert "mount -t cgroup2 cgroup2 /sys/fs/cgroup\nmkdir -p /sys/fs/cgroup/init\n" in new


def test_setup_keeps_our_own_code_visible() -> None:
    script = setup_script("k1", Path("/var/lib/box/k 1"), [], [Path("/var/lib/ci/skyrack")]).splitlines()
    assert script[1] == "cd '/var/lib/box/k 1'"
    kept, hidden = script.index("mount --rbind /var/lib/ci/skyrack var/lib/ci/skyrack"), script.index("mount --rbind var /var")
    assert kept < hidden


def test_accounts_are_added_once() -> None:
    text = "root:x:0:0:root:/root:/bin/bash\n"
    once = hypervisor.accounts("passwd", text)
    assert once.startswith(text) and once.count("libvirt-qemu:x:") == 1
    assert hypervisor.accounts("passwd", once) == once
    assert hypervisor.accounts("group", "kvm:x:7:\n").count("kvm:") == 1


def test_admin_env() -> None:
    text = "# the admin\nexport SKYRACK_USER=admin\nSKYRACK_PASSWORD='a b=c'\n"
    assert read_env(text) == {"SKYRACK_USER": "admin", "SKYRACK_PASSWORD": "a b=c"}
