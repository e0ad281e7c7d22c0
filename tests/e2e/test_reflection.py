"""Anything that speaks gRPC reflection can list and call the API with a token, and list what an agent serves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.e2e import reflecting
from tests.e2e.reflecting import Reflected
from tests.e2e.running_rack import RunningRack

NOUNS = (
    "Cluster", "Event", "Flavor", "Identity", "Image", "Keypair", "Network", "Node", "Quota", "Router", "SecurityGroup",
    "Server", "Task", "Volume",
)  # fmt: skip
COMMON = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
OPEN = {"skyrack.v1.IdentityService/CreateToken", "skyrack.v1.NodeService/JoinNode"}
AGENTS = [
    ("n1", "10.10.0.21:7710", set()), ("k1", "10.10.0.41:7710", set()), ("k1", "10.10.0.41:7720", set()),
    ("s1", "10.10.0.31:7730", {"skyrack.v1.BlobService"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def api(rack: RunningRack) -> Iterator[Reflected]:
    credentials = grpc.ssl_channel_credentials(Path(rack.env["SKYRACK_CA"]).read_bytes())
    with grpc.secure_channel(rack.env["SKYRACK_ENDPOINT"], credentials) as channel:
        yield Reflected(channel)


@pytest.fixture(scope="module")
def token(api: Reflected, rack: RunningRack) -> str:
    who = {"user": rack.env["SKYRACK_USER"], "password": rack.env["SKYRACK_PASSWORD"]}
    return str(api.call("skyrack.v1.IdentityService/CreateToken", who)["token"])


def test_api_lists_its_services(api: Reflected) -> None:
    assert set(api.services()) == COMMON | {f"skyrack.v1.{noun}Service" for noun in NOUNS}
    assert api.call("grpc.health.v1.Health/Check") == {"status": "SERVING"}


def test_a_call_with_a_token(api: Reflected, token: str) -> None:
    bearer = f"Bearer {token}"
    flavors = api.call("skyrack.v1.FlavorService/ListFlavors", authorization=bearer)["flavors"]
    assert "m1.nano" in {flavor["name"] for flavor in flavors}
    made = api.call("skyrack.v1.NetworkService/CreateNetwork", {"name": "reflected"}, authorization=bearer)
    known = api.call("skyrack.v1.NetworkService/GetNetwork", {"network_id": made["id"]}, authorization=bearer)
    assert known["name"] == "reflected" and known["created_at"].endswith("Z")
    api.call("skyrack.v1.NetworkService/DeleteNetwork", {"network_id": made["id"]}, authorization=bearer)


@pytest.mark.parametrize("bearer", ["", "Bearer ", "Bearer of-nobody", "Basic YWRtaW46YWRtaW4="])
def test_no_method_answers_without_a_token(api: Reflected, bearer: str) -> None:
    """Every method of the public API, but those by which one comes in."""
    closed = {f"{service}/{method.name}" for service in set(api.services()) - COMMON for method in api.methods(service)} - OPEN
    assert len(closed) > 80
    for method in sorted(closed):
        with pytest.raises(grpc.RpcError) as refusal:
            api.call(method, None, authorization=bearer)
        assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED, method


@pytest.mark.parametrize(("node", "address", "own"), AGENTS)
def test_agents_list_their_services_to_nodes(rack: RunningRack, node: str, address: str, own: set[str]) -> None:
    listed = json.loads(rack.exec(node, sys.executable, reflecting.__file__, address))
    assert set(listed) == COMMON | own
    assert "Check" in listed["grpc.health.v1.Health"]


@pytest.mark.parametrize(("node", "address", "own"), AGENTS)
def test_agents_talk_to_nobody_without_a_certificate(rack: RunningRack, node: str, address: str, own: set[str]) -> None:
    hello = ("curl", "-sk", "--noproxy", "*", "--http2-prior-knowledge", "--max-time", "5", f"https://{address}/")
    with pytest.raises(subprocess.CalledProcessError):
        rack.exec(node, *hello)
