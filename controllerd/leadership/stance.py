"""What a controller that does not lead does next. Pure: what it sees comes in, a step goes out."""

from __future__ import annotations

from dataclasses import dataclass

SUCCESSOR_PATIENCE_S = 1.0  # the named successor has so long before the others try
TURN_S, TURN_JITTER_S = 0.3, 0.05  # all see at the same moment that nobody leads
WAIT_MIN_S = 0.005  # less is not worth a look
LEADERLESS_POLL_S = 1.0  # of a copy that cannot lead, and waits for one that can


@dataclass(frozen=True)
class View:
    """`led`: somebody holds the leader key. `fit`: this copy has all that is in the log. `vacant_s`: so long ago it was first
    seen that nobody leads. `turn_s`: this controller's turn to try comes so long after. `restraint_s`: so long it still leaves
    it to others."""

    me: str
    led: bool
    fit: bool
    successor: str = ""
    vacant_s: float = 0.0
    turn_s: float = 0.0
    restraint_s: float = 0.0


@dataclass(frozen=True)
class Follow:
    """Apply what the leader writes, until nobody leads."""


@dataclass(frozen=True)
class Campaign:
    """Try to become the leader."""


@dataclass(frozen=True)
class Wait:
    """Then look again."""

    for_s: float


def next_step(view: View) -> Follow | Campaign | Wait:
    if view.led:
        return Follow()
    if not view.fit:
        return Wait(LEADERLESS_POLL_S)
    if view.successor == view.me:
        return Campaign()
    patience_s = SUCCESSOR_PATIENCE_S if view.successor else 0.0
    left_s = max(patience_s + view.turn_s - view.vacant_s, view.restraint_s)
    return Wait(left_s) if left_s > WAIT_MIN_S else Campaign()
