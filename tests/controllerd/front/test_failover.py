"""What clients of the SDK see while controllers change: nothing, but that it takes a moment."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import grpc
import pytest

from skyrack.client import errors
from skyrack.v1 import image_pb2, keypair_pb2
from tests.controllerd.front.rig import Rack
from tests.controllerd.identity.conftest import bearer

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43 + " tester"


async def test_a_standby_answers_for_the_leader(pair: Rack) -> None:
    async with pair.client(pair.nodes["c2"]) as cloud:
        made = await cloud.keypairs.create("k1", public_key=KEY)
        assert [row.name async for row in cloud.keypairs.list()] == ["k1"]
        with pytest.raises(errors.AlreadyExists) as caught:
            await cloud.keypairs.create("k1", public_key=KEY)
        assert caught.value.request_id and caught.value.metadata["id"] == "k1"
        with pytest.raises(errors.InvalidArgument) as bad:
            await cloud.keypairs.create("k2", public_key="nonsense")
        assert bad.value.field == "public_key"
        assert made.name == "k1"


async def test_calls_without_a_leader_wait_for_one(pair: Rack) -> None:
    await pair.resign("c1")
    async with pair.client(pair.nodes["c1"], pair.nodes["c2"]) as cloud:
        waiting = [asyncio.create_task(cloud.keypairs.create(f"k{n}", public_key=KEY)) for n in range(5)]
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in waiting)
        await pair.elect("c2")
        assert {key.name for key in await asyncio.gather(*waiting)} == {f"k{n}" for n in range(5)}


async def test_creates_through_many_changes_happen_once(pair: Rack) -> None:
    made: list[str] = []

    async def work(worker: int) -> None:
        async with pair.client(*pair.nodes.values()) as cloud:
            for turn in range(20):
                made.append((await cloud.keypairs.create(f"k{worker}-{turn}", public_key=KEY)).name)

    working = [asyncio.create_task(work(worker)) for worker in range(4)]
    names = ["c1", "c2"]
    for turn in range(4):
        await asyncio.sleep(0.1)
        await pair.resign(names[turn % 2])
        await pair.elect(names[(turn + 1) % 2])
    await asyncio.gather(*working)
    async with pair.client(pair.nodes["c1"]) as cloud:
        stored = [row.name async for row in cloud.keypairs.list()]
    assert sorted(stored) == sorted(made) and len(stored) == 80


async def test_a_killed_leader_fails_no_call(pair: Rack) -> None:
    async def work(worker: int) -> None:
        async with pair.client(*pair.nodes.values()) as cloud:
            for turn in range(30):
                await cloud.keypairs.create(f"k{worker}-{turn}", public_key=KEY)

    working = [asyncio.create_task(work(worker)) for worker in range(3)]
    await asyncio.sleep(0.1)
    await pair.kill("c1")
    await asyncio.sleep(1.0)
    await pair.elect("c2")
    await asyncio.gather(*working)
    async with pair.client(pair.nodes["c2"]) as cloud:
        assert len([row async for row in cloud.keypairs.list()]) == 90


@pytest.mark.parametrize("order", ["good order", "killed"])
async def test_a_watch_goes_on_with_the_next_leader(pair: Rack, order: str) -> None:
    async with pair.client(*pair.nodes.values()) as cloud:
        await cloud.keypairs.create("k0", public_key=KEY)
        seen: list[str] = []

        async def watch() -> None:
            async for event in cloud.events.watch():
                seen.append(event.kind)
                if event.kind == "network.delete":
                    return

        watching = asyncio.create_task(watch())
        await asyncio.sleep(0.5)
        net = await cloud.networks.create("n1")
        if order == "killed":
            await pair.kill("c1")
        else:
            await pair.resign("c1")
        await pair.elect("c2")
        await cloud.networks.delete(net)
        await watching
        assert seen == ["network.create", "network.delete"]


async def test_an_upload_through_a_standby_and_a_change(pair: Rack, tmp_path: Path) -> None:
    content = b"\x07" * (20 << 20)
    file, small = tmp_path / "disk.raw", tmp_path / "small.raw"
    file.write_bytes(content)
    small.write_bytes(content[: 3 << 20])
    session = await pair.agent("s1")
    await session.connected.wait()
    async with pair.client(pair.nodes["c2"], pair.nodes["c1"]) as cloud:
        first = await cloud.images.create("whole", format="raw")
        done = await cloud.images.upload(first, file)
        assert done.state == "ACTIVE" and done.sha256 == hashlib.sha256(content).hexdigest()
        third = await cloud.images.upload(await cloud.images.create("small", format="raw"), small)
        await cloud.images.download(third, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == content[: 3 << 20]
        second = await cloud.images.create("broken", format="raw")
        uploading = asyncio.create_task(cloud.images.upload(second, file))
        await asyncio.sleep(0.02)
        await pair.resign("c1")
        await pair.elect("c2")
        assert (await uploading).state == "ACTIVE"


async def test_what_is_too_large_is_refused_at_the_front(pair: Rack) -> None:
    request = keypair_pb2.CreateKeypairRequest(name="k", public_key="x" * (9 << 20)).SerializeToString()
    async with pair.channel(pair.nodes["c2"].api) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/skyrack.v1.KeypairService/CreateKeypair")(
                request, metadata=bearer(pair.tokens["alpha/member"])
            )
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_upload_that_ends_early_tells_why(pair: Rack) -> None:
    async with pair.channel(pair.nodes["c2"].api) as channel:
        upload = channel.stream_unary("/skyrack.v1.ImageService/UploadImage")
        begin = image_pb2.UploadImageRequest(begin=image_pb2.UploadImageBegin(image_id="none")).SerializeToString()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await upload(iter([begin]), metadata=bearer(pair.tokens["alpha/member"]))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
