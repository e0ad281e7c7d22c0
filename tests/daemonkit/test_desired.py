from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemonkit.desired import DesiredMismatch, Mirror, encode, key_of, state_hash
from skyrack.v1 import agent_pb2

Spec = agent_pb2.DesiredObject


def spec(number: int, value: int) -> Spec:
    if number % 2:
        return Spec(id=f"i{number}", server=agent_pb2.ServerSpec(vcpus=value))
    return Spec(id=f"i{number}", volume=agent_pb2.VolumeSpec(size_gib=value))


Steps = st.lists(st.dictionaries(st.integers(0, 9), st.none() | st.integers(0, 3), max_size=6), max_size=12)


def bodies(held: dict[int, int]) -> dict[str, bytes]:
    specs = [spec(n, v) for n, v in held.items()]
    return {key_of(s): encode(s) for s in specs}


def step(held: dict[int, int], change: dict[int, int | None], generation: int) -> agent_pb2.DesiredState:
    """Changes `held`; gives the delta that tells of it."""
    for number, value in change.items():
        held.pop(number, None)
        if value is not None:
            held[number] = value
    put = [spec(n, v) for n, v in change.items() if v is not None]
    gone = [key_of(spec(n, 0)) for n, v in change.items() if v is None]
    return agent_pb2.DesiredState(
        base=generation - 1, generation=generation, put=put, remove=gone, hash=state_hash(bodies(held))
    )


@given(Steps)
def test_deltas_lead_to_the_whole(steps: list[dict[int, int | None]]) -> None:
    mirror, held = Mirror(), {}
    for generation, change in enumerate(steps, start=1):
        before = dict(mirror.bodies)
        changed = mirror.apply(3, step(held, change, generation) if generation > 1 else whole(held, change))
        assert mirror.bodies == bodies(held) and mirror.generation == generation and mirror.epoch == 3
        assert changed == {k for k in before.keys() | mirror.bodies.keys() if before.get(k) != mirror.bodies.get(k)}
    assert {k: encode(o) for k, o in mirror.objects.items()} == mirror.bodies
    restored = Mirror.restore(mirror.epoch, mirror.generation, mirror.bodies)
    assert restored == mirror and restored.hash() == mirror.hash()


def whole(held: dict[int, int], change: dict[int, int | None]) -> agent_pb2.DesiredState:
    delta = step(held, change, 1)
    assert delta.base == 0
    return delta


@given(Steps.filter(len), st.data())
def test_a_missed_or_altered_delta_is_noticed_and_changes_nothing(
    steps: list[dict[int, int | None]], data: st.DataObject
) -> None:
    mirror, held = Mirror(), {1: 1}
    mirror.apply(1, agent_pb2.DesiredState(generation=1, put=[spec(1, 1)], hash=state_hash(bodies(held))))
    kept = Mirror(mirror.epoch, mirror.generation, dict(mirror.objects), dict(mirror.bodies))
    delta = step(held, steps[0], 2)
    fault = data.draw(st.sampled_from(["base", "epoch", "hash", "content"]))
    if fault == "base":
        delta.base = 7
    elif fault == "hash":
        delta.hash = b"\0" * 32
    elif fault == "content":
        delta.put.append(spec(99, 1))
    with pytest.raises(DesiredMismatch):
        mirror.apply(2 if fault == "epoch" else 1, delta)
    assert mirror == kept


def test_same_keeps_what_is_held_under_a_new_name() -> None:
    mirror = Mirror()
    mirror.apply(1, agent_pb2.DesiredState(generation=4, put=[spec(1, 1)], hash=state_hash(bodies({1: 1}))))
    assert mirror.apply(2, agent_pb2.DesiredState(same=True, generation=1, hash=mirror.hash())) == set()
    assert (mirror.epoch, mirror.generation, list(mirror.bodies)) == (2, 1, ["server/i1"])
    with pytest.raises(DesiredMismatch):
        mirror.apply(2, agent_pb2.DesiredState(same=True, generation=2, hash=b"other"))


def test_an_object_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(DesiredMismatch, match="kind"):
        Mirror().apply(1, agent_pb2.DesiredState(generation=1, put=[Spec(id="x")], hash=b""))
