"""What a controller that does not lead does next, as a table."""

from __future__ import annotations

import pytest

from controllerd.leadership.stance import LEADERLESS_POLL_S, SUCCESSOR_PATIENCE_S, Campaign, Follow, View, Wait, next_step

VACANT = View("b", led=False, fit=True)


@pytest.mark.parametrize(
    ("view", "step"),
    [
        (View("b", led=True, fit=False), Follow()),
        (View("b", led=True, fit=True, successor="b"), Follow()),
        (View("b", led=False, fit=False), Wait(LEADERLESS_POLL_S)),
        (View("b", led=False, fit=False, successor="b", vacant_s=100), Wait(LEADERLESS_POLL_S)),
        (VACANT, Campaign()),
        (View("b", led=False, fit=True, vacant_s=0.0, turn_s=0.2), Wait(0.2)),
        (View("b", led=False, fit=True, vacant_s=0.2, turn_s=0.2), Campaign()),
        (View("b", led=False, fit=True, successor="b", vacant_s=0.0, turn_s=0.2), Campaign()),
        (View("b", led=False, fit=True, successor="b", restraint_s=1.0), Campaign()),
        (View("b", led=False, fit=True, successor="c", turn_s=0.25), Wait(SUCCESSOR_PATIENCE_S + 0.25)),
        (View("b", led=False, fit=True, successor="c", vacant_s=SUCCESSOR_PATIENCE_S, turn_s=0.25), Wait(0.25)),
        (View("b", led=False, fit=True, successor="c", vacant_s=SUCCESSOR_PATIENCE_S + 0.25, turn_s=0.25), Campaign()),
        (View("b", led=False, fit=True, vacant_s=5.0, turn_s=0.2, restraint_s=1.5), Wait(1.5)),
        (View("b", led=False, fit=True, vacant_s=5.0, turn_s=0.2, restraint_s=-1.5), Campaign()),
    ],
)
def test_next_step(view: View, step: Follow | Campaign | Wait) -> None:
    assert next_step(view) == step
