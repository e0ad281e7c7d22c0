"""The arithmetic of quotas, for all numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controllerd.domain.quota import DEFAULTS, UNLIMITED, enforce
from daemonkit.errors import QuotaExceeded

resources = st.sampled_from(sorted(DEFAULTS))
amounts = st.integers(0, 1000)


@given(st.dictionaries(resources, st.integers(UNLIMITED, 1000)), st.dictionaries(resources, st.tuples(amounts, amounts)))
def test_refused_exactly_when_something_goes_over(limits: dict[str, int], asked: dict[str, tuple[int, int]]) -> None:
    used = {r: u for r, (u, _n) in asked.items()}
    requested = {r: n for r, (_u, n) in asked.items()}
    over = [
        r for r in asked
        if requested[r] and limits.get(r, DEFAULTS[r]) != UNLIMITED and used[r] + requested[r] > limits.get(r, DEFAULTS[r])
    ]  # fmt: skip
    try:
        enforce(limits, used, requested)
        assert not over
    except QuotaExceeded as error:
        assert error.metadata["resource"] in over
        assert int(error.metadata["used"]) + int(error.metadata["requested"]) > int(error.metadata["limit"])
