"""The scheduler: filters, weights, and the words of a refusal."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllerd.domain.placement import Candidate, Ratios, Request
from controllerd.scheduler.placement import place, refusals
from daemonkit.errors import NoValidHost

SHA = "a" * 64
NODE = Candidate("1", "k1", True, True, True, False, 4, 4096, 100, 0, 0, 0, 0, frozenset())
EVEN = Ratios()
SMALL = Request(1, 512, 1, SHA)


def node(name: str, **changes: object) -> Candidate:
    return replace(NODE, node_id=f"id-{name}", name=name, **changes)  # type: ignore[arg-type]


def refused(candidates: list[Candidate], request: Request = SMALL, ratios: Ratios = EVEN) -> NoValidHost:
    with pytest.raises(NoValidHost) as error:
        place(candidates, request, ratios)
    return error.value


def test_weights_in_their_order() -> None:
    roomy = node("k3", servers=9)
    busy = node("k2", memory_mib_claimed=1024, servers=1, images=frozenset({SHA}))
    assert place([busy, roomy], SMALL, Ratios()) is roomy  # most memory free
    nearly = node("k1", memory_mib_claimed=100, servers=1, images=frozenset({SHA}))
    empty = node("k2")
    assert place([nearly, empty], SMALL, Ratios()) is empty  # a small difference does not count: fewest servers
    cached = node("k9", images=frozenset({SHA}))
    assert place([empty, cached], SMALL, Ratios()) is cached
    assert place([node("b", servers=2), node("c", servers=1), node("a", servers=1)], SMALL, Ratios()).name == "a"


def test_servers_spread() -> None:
    """One after the other, on two nodes alike."""
    counts = {"k1": 0, "k2": 0}
    for _ in range(8):
        nodes = [
            node(n, servers=c, memory_mib_claimed=100 * c, images=frozenset({SHA} if c else ())) for n, c in counts.items()
        ]
        counts[place(nodes, SMALL, Ratios()).name] += 1
    assert counts == {"k1": 4, "k2": 4}


@pytest.mark.parametrize(("change", "name"), [
    ({"compute": False}, ""), ({"enabled": False}, "enabled"), ({"lost": True}, "lost"), ({"in_session": False}, "session"),
    ({"vcpus_claimed": 16}, "vcpus"), ({"memory_mib_claimed": 3585}, "memory"), ({"disk_gib_claimed": 100}, "disk"),
])  # fmt: skip
def test_each_filter(change: dict[str, object], name: str) -> None:
    error = refused([node("k1", **change)])
    assert list(error.metadata) == ([name] if name else [])
    if not name:
        assert "no compute nodes" in error.message


def test_hints() -> None:
    nodes = [node("k1"), node("k2")]
    assert place(nodes, replace(SMALL, node_id="id-k2"), Ratios()).name == "k2"
    assert place(nodes, replace(SMALL, not_node_id="id-k1"), Ratios()).name == "k2"
    error = refused(nodes[:1], replace(SMALL, not_node_id="id-k1"))
    assert error.metadata == {"different_node": "1 of 1 nodes"}


def test_a_refusal_tells_counts_and_the_closest_miss_but_no_names() -> None:
    nodes = [
        node("k1", memory_mib_claimed=3840), node("k2", memory_mib_claimed=4000), node("k3", enabled=False),
        node("s1", compute=False),
    ]  # fmt: skip
    error = refused(nodes)
    assert error.message == "no node fits: enabled: 1 of 3 nodes, memory: 2 of 3 nodes; closest miss lacks 256 MiB"
    assert error.metadata == {"enabled": "1 of 3 nodes", "memory": "2 of 3 nodes; closest miss lacks 256 MiB"}
    told = [r.told(with_names=True) for r in refusals(nodes, SMALL, Ratios())]
    assert told == ["enabled: 1 of 3 nodes", "memory: 2 of 3 nodes; closest miss k1 lacks 256 MiB"]


def test_over_commit() -> None:
    full = node("k1", vcpus_claimed=15, memory_mib_claimed=3584, disk_gib_claimed=99)
    assert place([full], SMALL, Ratios()) is full
    assert "vcpus" in refused([full], SMALL, Ratios(vcpu=3.9)).metadata
    assert "memory" in refused([full], SMALL, Ratios(memory=0.9)).metadata
    assert "disk" in refused([full], replace(SMALL, disk_gib=2)).metadata


SIZES = st.integers(0, 64)
CANDIDATES = st.lists(
    st.builds(
        lambda i, e, s, lo, v, m, d, vc, mc, dc: node(
            f"k{i}", enabled=e, in_session=s, lost=lo, vcpus=v, memory_mib=m, disk_gib=d, vcpus_claimed=vc,
            memory_mib_claimed=mc, disk_gib_claimed=dc,
        ),
        st.integers(0, 9), st.booleans(), st.booleans(), st.booleans(), SIZES, SIZES, SIZES, SIZES, SIZES, SIZES,
    ), max_size=8,
)  # fmt: skip
REQUESTS = st.builds(Request, st.integers(1, 16), st.integers(1, 64), st.integers(1, 64))


@given(CANDIDATES, REQUESTS, st.sampled_from([Ratios(), Ratios(1.5, 1.5, 1.5)]))
def test_what_is_chosen_fits_and_what_is_refused_adds_up(candidates: list[Candidate], request: Request, ratios: Ratios) -> None:
    try:
        c = place(candidates, request, ratios)
    except NoValidHost:
        assert sum(r.nodes for r in refusals(candidates, request, ratios)) == len(candidates)
        return
    assert c.enabled and c.in_session and not c.lost
    assert c.vcpus_claimed + request.vcpus <= c.vcpus * ratios.vcpu
    assert c.memory_mib_claimed + request.memory_mib <= c.memory_mib * ratios.memory
    assert c.disk_gib_claimed + request.disk_gib <= c.disk_gib * ratios.disk
    assert place(list(reversed(candidates)), request, ratios).name == c.name
