"""Records, pages, names, errors, waiters, uploads and the event stream."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemonkit import errors as sent
from skyrack.client import Cloud, errors
from skyrack.client import sync as plain
from skyrack.client.cloud import NOUNS
from skyrack.client.subnet import AddressPool, HostRoute
from skyrack.client.wire import to_record
from skyrack.v1 import network_pb2
from skyrack.v1 import server_pb2 as pb
from tests.client.fake_api import MADE_AT, PASSWORD, SERVICES, FakeApi, FakeCloud


async def make_server(cloud: Cloud, name: str = "web-1") -> Any:
    flavor = await cloud.flavors.create("m1.tiny", vcpus=1, memory_mib=64, disk_gib=1)
    return await cloud.servers.create(name, flavor=flavor, image="i")


def test_records_have_the_fields_of_their_messages() -> None:
    """A field added to a message but not to its record would never reach users."""
    left_out = {"Usage": {"from", "to"}}
    checked = 0
    for module_name, class_name in NOUNS.values():
        record = getattr(getattr(importlib.import_module(f"skyrack.client.{module_name}"), class_name), "record", None)
        for proto, _stubs in SERVICES:
            message = record and getattr(proto, record.__name__, None)
            if message:
                fields = {field.name for field in dataclasses.fields(record)} | left_out.get(record.__name__, set())
                assert fields == set(message.DESCRIPTOR.fields_by_name), record
                checked += 1
    assert checked >= 14


def test_every_method_of_the_api_is_called_by_the_sdk() -> None:
    directory = Path(importlib.import_module("skyrack.client").__file__ or "").parent
    source = "".join(path.read_text() for path in directory.glob("*.py"))
    for proto, _stubs in SERVICES:
        for service in proto.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                assert f'"{method.name}"' in source or f"{service.name}/{method.name}" in source, method.full_name


def test_conversion() -> None:
    from skyrack.client.server import Server

    message = pb.Server(id="s", state=pb.SERVER_STATE_ACTIVE, metadata={"a": "b"})
    message.timeline.add(name="accepted").time.FromDatetime(MADE_AT)
    record = to_record(Server, message)
    assert (record.state, record.metadata, record.fault, record.created_at) == ("ACTIVE", {"a": "b"}, None, None)
    assert record.timeline[0].time == MADE_AT
    message.fault.details.append("memory: 2 of 3 nodes")
    assert to_record(Server, message).fault.details == ("memory: 2 of 3 nodes",)  # type: ignore[union-attr]
    unknown = pb.Server.FromString(b"\x20\x63")
    assert to_record(Server, unknown).state == "UNKNOWN_99"
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.name = "x"  # type: ignore[misc]


async def test_lists_go_over_pages(cloud: Cloud, fake: FakeCloud) -> None:
    for number in range(5):
        await cloud.networks.create(f"net-{number}")
    assert [row.name async for row in cloud.networks.list()] == [f"net-{number}" for number in range(5)]
    assert fake.methods().count("ListNetworks") == 3


async def test_find(cloud: Cloud) -> None:
    one = await cloud.networks.create("one")
    twins = [await cloud.networks.create("twin") for _ in range(3)]
    assert await cloud.networks.find("one") == one
    assert await cloud.networks.find(one.id) == one
    with pytest.raises(errors.Ambiguous) as caught:
        await cloud.networks.find("twin")
    assert caught.value.ids == tuple(twin.id for twin in twins)
    assert all(twin.id in caught.value.message for twin in twins)
    with pytest.raises(errors.NotFound):
        await cloud.networks.find("three")


async def test_of_several_the_own_one_is_found(cloud: Cloud, fake: FakeCloud) -> None:
    own, shared = [await cloud.networks.create("private") for _ in range(2)]
    fake.rows["Network"][shared.id].MergeFrom(network_pb2.Network(project_id="p2", shared=True))
    assert [row.id async for row in cloud.networks.list()] == [own.id, shared.id]
    assert await cloud.networks.find("private") == own


ALL_PROJECTS = ("images", "networks", "subnets", "ports", "routers", "floating_ips", "security_groups", "servers", "volumes")


@pytest.mark.parametrize("noun", ALL_PROJECTS)
async def test_lists_of_all_projects(cloud: Cloud, fake: FakeCloud, noun: str) -> None:
    collection = getattr(cloud, noun)
    kind = collection.record.__name__
    message = next(getattr(proto, kind) for proto, _stubs in SERVICES if hasattr(proto, kind))
    own, other = [fake.put(message(project_id=project)).id for project in ("p1", "p2")]
    with pytest.raises(errors.Forbidden):
        await anext(collection.list(all_projects=True))
    fake.role = "admin"
    assert [row.id async for row in collection.list()] == [own]
    assert [row.id async for row in collection.list(all_projects=True)] == [own, other]


async def test_a_name_that_looks_like_an_id(cloud: Cloud) -> None:
    name = "00000000-0000-4000-8000-000000000000"
    row = await cloud.networks.create(name)
    assert await cloud.networks.find(name) == row


async def test_errors_keep_what_the_cloud_said(cloud: Cloud, fake: FakeCloud) -> None:
    fake.before["CreateSubnet"] = [sent.InvalidArgument("cidr", "host bits are set")]
    with pytest.raises(errors.InvalidArgument) as caught:
        await cloud.subnets.create("s", network="n", cidr="10.0.0.1/24")
    assert (caught.value.field, caught.value.message) == ("cidr", "cidr: host bits are set")
    assert caught.value.request_id == fake.calls[-1][2]["x-request-id"]
    fake.limits["servers"] = 0
    with pytest.raises(errors.QuotaExceeded) as quota:
        await make_server(cloud)
    assert quota.value.metadata["limit"] == "0"
    assert quota.value.advice == "ask an admin: skyrack quota set --servers N PROJECT"


async def test_a_bug_of_the_cloud_is_told_with_its_request_id(cloud: Cloud, fake: FakeCloud) -> None:
    fake.before["CreateNetwork"] = [RuntimeError("boom")]
    with pytest.raises(errors.CloudError) as caught:
        await cloud.networks.create("n")
    assert "boom" not in caught.value.message
    assert caught.value.request_id in caught.value.advice
    assert fake.methods().count("CreateNetwork") == 1


async def test_subnet_update_replaces_only_what_is_given(cloud: Cloud, fake: FakeCloud) -> None:
    subnet = await cloud.subnets.create(
        "s",
        network="n",
        cidr="10.0.0.0/24",
        gateway_ip="",
        dhcp=False,
        pools=[AddressPool("10.0.0.5", "10.0.0.9")],
        routes=[HostRoute("10.1.0.0/16", "10.0.0.2")],
    )
    assert subnet.pools == (AddressPool("10.0.0.5", "10.0.0.9"),)
    create = fake.calls[-1][1]
    assert create.HasField("gateway_ip") and create.HasField("dhcp")
    await cloud.subnets.update(subnet, dns_servers=[])
    update = fake.calls[-1][1]
    assert (update.replace_dns_servers, update.replace_routes, update.HasField("name")) == (True, False, False)


async def test_wait_tells_each_change_and_ends(cloud: Cloud, fake: FakeCloud) -> None:
    server = await make_server(cloud)
    active = pb.Server(state=pb.SERVER_STATE_ACTIVE)
    active.timeline.add(name="running", since_accepted_ms=120)
    fake.server_story = [pb.Server(), pb.Server(node="k1"), pb.Server(), active]
    seen: list[tuple[str, str]] = []
    done = await cloud.servers.wait(server, "ACTIVE", progress=lambda row: seen.append((row.state, row.node)))
    assert seen == [("BUILD", ""), ("BUILD", "k1"), ("ACTIVE", "k1")]
    assert done.timeline[0].since_accepted_ms == 120


async def test_wait_fails_at_once_with_the_reasons(cloud: Cloud, fake: FakeCloud) -> None:
    server = await make_server(cloud)
    failed = pb.Server(state=pb.SERVER_STATE_ERROR)
    failed.fault.MergeFrom(
        pb.Server.DESCRIPTOR.fields_by_name["fault"].message_type._concrete_class(
            reason="NO_VALID_HOST", message="no node fits", details=["memory: 2 of 2 nodes"]
        )
    )
    fake.server_story = [failed]
    with pytest.raises(errors.ResourceFailed) as caught:
        await cloud.servers.wait(server, "ACTIVE", deadline_s=60)
    assert caught.value.fault_reason == "NO_VALID_HOST"
    assert "memory: 2 of 2 nodes" in caught.value.message
    assert caught.value.record.state == "ERROR"


async def test_wait_has_a_deadline(cloud: Cloud, fake: FakeCloud) -> None:
    server = await make_server(cloud)
    fake.rows["Server"][server.id].task_id = "t1"
    with pytest.raises(errors.WaitTimeout) as caught:
        await cloud.servers.wait(server, "ACTIVE", deadline_s=0.3)
    assert "it is BUILD" in caught.value.message
    assert "skyrack task show t1" in caught.value.advice


async def test_wait_gone(cloud: Cloud, fake: FakeCloud) -> None:
    server = await make_server(cloud)
    fake.server_story = [pb.Server(), pb.Server(state=pb.SERVER_STATE_DELETING)]
    await cloud.servers.delete(server)
    await cloud.servers.wait_gone(server, deadline_s=20)
    assert not fake.rows["Server"]


CONTENT = bytes(range(256)) * (10 << 10)  # 2.5 MiB


@pytest.fixture
def content(tmp_path: Path) -> Path:
    path = tmp_path / "mini.raw"
    path.write_bytes(CONTENT)
    return path


async def test_upload_and_download(cloud: Cloud, fake: FakeCloud, content: Path, tmp_path: Path) -> None:
    image = await cloud.images.create("mini", format="raw")
    seen: list[tuple[int, int]] = []
    image = await cloud.images.upload(image, content, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1 << 20, len(CONTENT)), (2 << 20, len(CONTENT)), (len(CONTENT), len(CONTENT))]
    assert (image.state, image.sha256) == ("ACTIVE", hashlib.sha256(CONTENT).hexdigest())
    target = tmp_path / "back.raw"
    await cloud.images.download(image, target, progress=lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))


async def test_a_cut_upload_begins_again(cloud: Cloud, fake: FakeCloud, api: FakeApi, content: Path) -> None:
    image = await cloud.images.create("mini", format="raw")
    fake.before["chunk"] = [api.break_off]
    assert (await cloud.images.upload(image, content)).state == "ACTIVE"
    assert fake.contents[image.id] == CONTENT
    assert fake.methods().count("UploadImage") == 2


async def test_an_upload_whose_answer_was_lost_is_done(cloud: Cloud, fake: FakeCloud, api: FakeApi, content: Path) -> None:
    image = await cloud.images.create("mini", format="raw")
    fake.after["UploadImage"] = [api.break_off]
    assert (await cloud.images.upload(image, content)).state == "ACTIVE"


async def test_a_refused_upload_says_why(cloud: Cloud, fake: FakeCloud, content: Path) -> None:
    """At once, though the answer comes while chunks are being written."""
    image = await cloud.images.create("mini", format="raw")
    for times in range(1, 11):
        fake.before["chunk"] = [sent.InvalidArgument("chunk", "not a qcow2 image")]
        with pytest.raises(errors.InvalidArgument):
            await cloud.images.upload(image, content)
        assert fake.methods().count("UploadImage") == times
    with pytest.raises(FileNotFoundError):
        await cloud.images.upload(image, content.with_name("nothing"))


async def test_a_cut_download_goes_on(cloud: Cloud, fake: FakeCloud, api: FakeApi, content: Path, tmp_path: Path) -> None:
    image = await cloud.images.create("mini", format="raw")
    image = await cloud.images.upload(image, content)
    fake.before["sent"] = [api.break_off]
    await cloud.images.download(image, tmp_path / "back.raw")
    offsets = [request.offset for method, request, _metadata in fake.calls if method == "DownloadImage"]
    assert len(offsets) == 2 and offsets[1] > 0
    assert (tmp_path / "back.raw").read_bytes() == CONTENT


async def test_a_wrong_download_is_not_kept(cloud: Cloud, fake: FakeCloud, content: Path, tmp_path: Path) -> None:
    image = await cloud.images.create("mini", format="raw")
    image = await cloud.images.upload(image, content)
    fake.contents[image.id] = b"something else"
    with pytest.raises(errors.CloudError):
        await cloud.images.download(image, tmp_path / "back.raw")
    assert not list(tmp_path.glob("back.raw*"))  # noqa: ASYNC240


async def until(true: Callable[[], bool]) -> None:
    """Polls: what is waited for happens in the fake, which tells nobody."""
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_events_are_followed_across_breaks(cloud: Cloud, fake: FakeCloud, api: FakeApi) -> None:
    fake.tell("server.create", "before")
    seen: list[str] = []

    async def follow() -> None:
        async for event in cloud.events.watch():
            seen.append(event.message)
            if len(seen) == 3:
                return

    following = asyncio.create_task(follow())
    await until(lambda: "WatchEvents" in fake.methods())
    fake.tell("server.running", "one")
    await until(lambda: len(seen) == 1)
    fake.before["event"] = [api.break_off]
    fake.tell("server.stop", "two")
    fake.tell("server.stop", "three")
    await asyncio.wait_for(following, 20)
    assert seen == ["one", "two", "three"]


async def test_many_calls_share_one_login(cloud: Cloud, fake: FakeCloud) -> None:
    await asyncio.gather(*(cloud.networks.create(f"n{number}") for number in range(50)))
    assert fake.methods().count("CreateToken") == 1
    assert len(fake.rows["Network"]) == 50


async def test_usage_and_quota(cloud: Cloud, fake: FakeCloud) -> None:
    usage = await cloud.usages.get(start=MADE_AT, end=MADE_AT + datetime.timedelta(days=1))
    assert usage.servers[0].cpu_s == 12.25
    assert getattr(fake.calls[-1][1], "from").ToDatetime(tzinfo=datetime.UTC) == MADE_AT
    quota = await cloud.quotas.update("p1", {"servers": 20})
    assert quota.items[0].limit == 20


async def test_synchronous_face(api: FakeApi, fake: FakeCloud) -> None:
    def work() -> list[str]:
        with plain.Cloud.connect([api.address], ca=api.ca, user="alice", password=PASSWORD, environ={}) as cloud:
            for number in range(3):
                cloud.networks.create(f"n{number}")
            with pytest.raises(errors.NotFound):
                cloud.networks.find("nothing")
            return [row.name for row in cloud.networks.list()]

    assert await asyncio.to_thread(work) == ["n0", "n1", "n2"]
