"""The stock of nodes kept in memory answers what weighing every node answers."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controllerd.domain.placement import Candidate, Ratios, Request
from controllerd.scheduler.placement import place
from controllerd.scheduler.stock import Stock
from daemonkit.errors import NoValidHost

IMAGES = ("a" * 64, "b" * 64)
KEYS = st.integers(0, 30)
NODES = st.builds(
    Candidate, st.just(""), st.just(""), *[st.sampled_from([True, True, True, False])] * 3,
    st.sampled_from([False, False, True]),
    *[st.integers(0, 16)] * 3, *[st.integers(0, 16)] * 3, st.integers(0, 2), st.frozensets(st.sampled_from(IMAGES)),
)  # fmt: skip
REQUESTS = st.builds(
    Request, st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.sampled_from(["", *IMAGES]),
    st.sampled_from(["", "", "", "id-3", "id-77"]), st.sampled_from(["", "id-0", "id-4"]),
)  # fmt: skip


def named(number: int, node: Candidate) -> Candidate:
    values = {name: getattr(node, name) for name in Candidate.__dataclass_fields__}
    return Candidate(**{**values, "node_id": f"id-{number}", "name": f"k{number}"})


def answer(find: Any) -> object:
    try:
        return find()
    except NoValidHost as error:
        return error.message, error.metadata


@given(st.lists(st.tuples(KEYS, st.none() | NODES), max_size=60), st.lists(REQUESTS, min_size=1, max_size=4),
       st.sampled_from([Ratios(), Ratios(1.5, 1.3, 0.7)]))  # fmt: skip
def test_it_answers_as_weighing_all_does(changes: list[Any], requests: list[Request], ratios: Ratios) -> None:
    stock, nodes = Stock(ratios), dict[int, Candidate]()
    for number, node in changes:
        if node is None:
            stock.drop(f"id-{number}")
            nodes.pop(number, None)
        else:
            nodes[number] = named(number, node)
            stock.put(nodes[number])
    filled = Stock(ratios)
    filled.fill(nodes.values())
    for request in requests:
        expected = answer(lambda r=request: place(list(nodes.values()), r, ratios))
        assert answer(lambda r=request: stock.find(r)) == expected
        assert answer(lambda r=request: filled.find(r)) == expected
