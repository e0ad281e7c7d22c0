"""Which calls are sent again, where to, and when the client gives up."""

from __future__ import annotations

import socket
import time

import pytest

from daemonkit import errors as sent
from skyrack.client import Cloud, errors
from tests.client.conftest import QUICK, connected
from tests.client.fake_api import PASSWORD, FakeApi, FakeCloud
from tests.pki import Pki


def free_address() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


async def test_logs_in_once_and_sends_the_token(cloud: Cloud, fake: FakeCloud) -> None:
    await cloud.projects.create("one")
    await cloud.projects.create("two")
    assert fake.methods() == ["CreateToken", "CreateProject", "CreateProject"]
    assert fake.calls[1][2]["authorization"].startswith("Bearer token-")
    assert len(fake.calls[1][2]["x-request-id"]) == 32


async def test_expired_token_is_renewed_once(cloud: Cloud, fake: FakeCloud) -> None:
    await cloud.projects.create("one")
    fake.tokens.clear()
    assert (await cloud.projects.create("two")).name == "two"
    assert fake.methods().count("CreateToken") == 2


async def test_refused_again_is_the_answer(cloud: Cloud, fake: FakeCloud) -> None:
    fake.before["CreateProject"] = [sent.Unauthenticated("no"), sent.Unauthenticated("no")]
    with pytest.raises(errors.Unauthenticated):
        await cloud.projects.create("one")
    assert fake.methods().count("CreateProject") == 2


async def test_wrong_password(api: FakeApi) -> None:
    async with Cloud.connect([api.address], ca=api.ca, user="alice", password="wrong", environ={}) as cloud:
        with pytest.raises(errors.Unauthenticated):
            await cloud.projects.create("one")


async def test_given_token_is_not_renewed(api: FakeApi, fake: FakeCloud) -> None:
    async with Cloud.connect([api.address], ca=api.ca, token="stale", environ={}) as cloud:
        with pytest.raises(errors.Unauthenticated) as caught:
            await cloud.tokens.current()
    assert fake.methods() == ["GetToken"]
    assert "SKYRACK_TOKEN" in caught.value.advice


async def test_break_under_a_create_resends_the_same_key(cloud: Cloud, fake: FakeCloud, api: FakeApi) -> None:
    await cloud.tokens.current()
    fake.after["CreateNetwork"] = [api.break_off]
    network = await cloud.networks.create("private")
    creates = [request for method, request, _metadata in fake.calls if method == "CreateNetwork"]
    assert len(creates) == 2
    assert creates[0].idempotency_key == creates[1].idempotency_key != ""
    assert [row.id for row in fake.rows["Network"].values()] == [network.id]


async def test_unavailable_answer_is_retried(cloud: Cloud, fake: FakeCloud) -> None:
    fake.before["CreateNetwork"] = [sent.Unavailable("busy"), sent.Unavailable("busy")]
    assert (await cloud.networks.create("private")).name == "private"
    ids = {metadata["x-request-id"] for method, _request, metadata in fake.calls if method == "CreateNetwork"}
    assert len(ids) == 1


async def test_break_under_a_reboot_is_not_repeated(cloud: Cloud, fake: FakeCloud, api: FakeApi) -> None:
    flavor = await cloud.flavors.create("f", vcpus=1, memory_mib=64, disk_gib=1)
    server = await cloud.servers.create("web", flavor=flavor, image="i")
    fake.rows["Server"][server.id].state = 2
    fake.after["RebootServer"] = [api.break_off]
    with pytest.raises(errors.Unreachable):
        await cloud.servers.reboot(server)
    assert fake.methods().count("RebootServer") == 1


async def test_a_start_whose_answer_was_lost_is_done(cloud: Cloud, fake: FakeCloud, api: FakeApi) -> None:
    flavor = await cloud.flavors.create("f", vcpus=1, memory_mib=64, disk_gib=1)
    server = await cloud.servers.create("web", flavor=flavor, image="i")
    fake.rows["Server"][server.id].state = 3
    fake.after["StartServer"] = [api.break_off]
    assert (await cloud.servers.start(server)).state == "ACTIVE"
    assert fake.methods().count("StartServer") == 2
    with pytest.raises(errors.Conflict):
        await cloud.servers.start(server)


async def test_no_sooner_than_advised(cloud: Cloud, fake: FakeCloud) -> None:
    busy = sent.Unavailable("busy")
    busy.retry_s = 0.7
    fake.before["CreateNetwork"] = [busy]
    began_s = time.monotonic()
    assert (await cloud.networks.create("private")).name == "private"
    assert time.monotonic() - began_s >= 0.7


async def test_without_a_leader_any_call_is_sent_again(cloud: Cloud, fake: FakeCloud) -> None:
    fake.before["RebootServer"] = [sent.NoLeader(0.1), sent.NoLeader(0.1)]
    with pytest.raises(errors.NotFound):
        await cloud.servers.reboot("nobody")
    assert fake.methods().count("RebootServer") == 3


async def test_delete_whose_answer_was_lost_is_done(cloud: Cloud, fake: FakeCloud, api: FakeApi) -> None:
    network = await cloud.networks.create("private")
    fake.after["DeleteNetwork"] = [api.break_off]
    await cloud.networks.delete(network)
    assert fake.methods().count("DeleteNetwork") == 2
    with pytest.raises(errors.NotFound):
        await cloud.networks.delete(network)


async def test_standby_sends_to_the_leader(api: FakeApi, fake: FakeCloud, pki: Pki) -> None:
    standby = await FakeApi(FakeCloud(), pki, "c2").start()
    standby.leader = api.address
    try:
        async with connected(api, standby.address) as cloud:
            assert (await cloud.networks.create("private")).name == "private"
            await cloud.tokens.current()
        assert standby.cloud.methods() == ["CreateToken"]
        assert fake.methods() == ["CreateToken", "CreateNetwork", "GetToken"]
    finally:
        await standby.stop()


async def test_no_leader_at_first(cloud: Cloud, fake: FakeCloud) -> None:
    fake.before["CreateNetwork"] = [sent.NotLeader("", 0), sent.NotLeader("", 0)]
    assert (await cloud.networks.create("private")).name == "private"


async def test_two_that_point_at_each_other_end(api: FakeApi, pki: Pki) -> None:
    other = await FakeApi(FakeCloud(), pki, "c2").start()
    other.leader, api.leader = api.address, other.address
    try:
        async with connected(api, api.address, other.address) as cloud:
            with pytest.raises(errors.NotLeader):
                await cloud.tokens.current()
    finally:
        await other.stop()


async def test_dead_endpoint_is_passed_over(api: FakeApi) -> None:
    async with connected(api, free_address(), api.address) as cloud:
        assert (await cloud.tokens.current()).user_name == "alice"


async def test_reboot_passes_over_a_dead_endpoint_too(api: FakeApi, fake: FakeCloud) -> None:
    async with connected(api, free_address(), api.address) as cloud:
        with pytest.raises(errors.NotFound):
            await cloud.servers.reboot("nobody")


async def test_nobody_there(api: FakeApi) -> None:
    address = free_address()
    async with connected(api, address) as cloud:
        with pytest.raises(errors.Unreachable) as caught:
            await cloud.tokens.current()
    assert address in caught.value.message
    assert "SKYRACK_CA" in caught.value.advice


async def test_foreign_authority_is_not_trusted(api: FakeApi, tmp_path: object) -> None:
    foreign = Pki(api.directory.parent / "foreign").node("x")
    async with Cloud.connect(
        [api.address], ca=foreign / "ca.pem", user="alice", password=PASSWORD, patience=QUICK, environ={}
    ) as cloud:
        with pytest.raises(errors.Unreachable):
            await cloud.tokens.current()


async def test_settings_from_the_environment(api: FakeApi) -> None:
    environ = {
        "SKYRACK_ENDPOINT": f" {free_address()}, {api.address} ",
        "SKYRACK_CA": str(api.ca),
        "SKYRACK_USER": "alice",
        "SKYRACK_PASSWORD": PASSWORD,
    }
    async with Cloud.connect(environ=environ) as cloud:
        assert (await cloud.tokens.current()).project_name == "lab"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SKYRACK_ENDPOINT": "127.0.0.1:1"},
        {"SKYRACK_ENDPOINT": "x:1", "SKYRACK_CA": "/nowhere"},
        {"SKYRACK_ENDPOINT": "x:1", "SKYRACK_CA": "/etc/hostname"},
    ],
)
def test_missing_settings(environ: dict[str, str]) -> None:
    with pytest.raises(errors.Misconfigured):
        Cloud.connect(environ=environ)
