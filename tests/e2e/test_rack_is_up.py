"""The rack as `skyrack sandbox up` leaves it: every daemon up and small, and a fault of each kind survived."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from tests.e2e.running_rack import RunningRack

RETURN_LIMIT_S = 60.0


def until(true: Callable[[], bool], limit_s: float = RETURN_LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "it did not come back in time"
        time.sleep(0.3)


def states(rack: RunningRack) -> dict[str, str]:
    return {node["name"]: node["state"].upper() for node in json.loads(rack.skyrack("node", "list", "--json"))}


def test_every_node_is_up(rack: RunningRack) -> None:
    seen = rack.status()
    up = {node["name"]: node["state"] for node in seen["nodes"] if node["name"] != "c1"}
    assert up == {"n1": "UP", "s1": "UP", "k1": "UP", "k2": "UP"}
    for node in seen["nodes"]:
        assert node["power"] == "on"
        assert {unit["state"] for unit in node["units"]} == {"running"}


def test_public_network_is_there_once_and_up_may_be_repeated(rack: RunningRack) -> None:
    before = rack.status()
    rack.up(controllers=1, networks=1, computes=2, storages=1)
    assert [n["name"] for n in json.loads(rack.skyrack("network", "list", "--json"))].count("public") == 1
    assert [n["pid"] for n in rack.status()["nodes"]] == [n["pid"] for n in before["nodes"]]


@pytest.mark.parametrize(("node", "unit"), [("k1", "computed"), ("n1", "networkd"), ("s1", "storaged")])
def test_killed_agent_comes_back(rack: RunningRack, node: str, unit: str) -> None:
    restarts = rack.unit(node, unit)["restarts"]
    rack.kill(node, unit)
    until(lambda: rack.unit(node, unit)["restarts"] > restarts and states(rack)[node] == "UP")


def test_killed_controller_comes_back(rack: RunningRack) -> None:
    restarts = rack.unit("c1", "controllerd")["restarts"]
    rack.kill("c1", "controllerd")
    until(lambda: rack.unit("c1", "controllerd")["restarts"] > restarts)
    until(lambda: set(states(rack).values()) == {"UP"})
