"""The image store over the wire: what it keeps, what it refuses, what is left after trouble."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from daemonkit import failpoint
from daemonkit.errors import Forbidden, InvalidArgument, NotFound, OutOfSpace, SkyrackError
from skyrack.v1 import agent_pb2, blob_pb2
from tests.storaged import hostile
from tests.storaged.conftest import Rig
from tests.storaged.rig import FAILED, GONE, HANG_S, PENDING, READY, Node, blob, eventually, export, new_id, residue, volume

UPLOADED_MIB = 64


def names(node: Node) -> list[str]:
    return sorted(path.name for part in ("blobs", "incoming") for path in (node.images / part).iterdir())


async def test_put_and_get(rig: Rig, tmp_path: Path) -> None:
    await rig.node.start()
    content = hostile.good(tmp_path, written=b"hello" * 100_000)
    put = rig.blobs("controller-1", "controller").put
    kept = await put(content, "qcow2")
    sha256 = hashlib.sha256(content).hexdigest()
    assert (kept.sha256, kept.size_bytes, kept.format, kept.virtual_bytes) == (sha256, len(content), "qcow2", 16 << 20)
    assert (kept.md5, kept.sha512) == (hashlib.md5(content).hexdigest(), hashlib.sha512(content).hexdigest())
    assert (await rig.controller.until(f"blob/{sha256}", READY)).size_bytes == len(content)
    assert await put(content, "qcow2", sha256) == kept  # once more is a success
    for node, role in (("host-1", "compute"), ("store-2", "storage"), ("controller-1", "controller")):
        assert await rig.blobs(node, role).get(sha256) == content
    assert await rig.blobs("host-1", "compute").get(sha256, offset=1000) == content[1000:]
    assert await rig.blobs("host-1", "compute").get(sha256, offset=len(content)) == b""

    raw = b"\xeb\x63\x90" + b"\0" * 507 + b"\x55\xaa" + b"boot" * 1000  # with a partition table's mark, odd length
    assert (await put(raw, "raw")).virtual_bytes == -(-len(raw) // 512) * 512
    await rig.node.kill()
    await rig.node.start()  # knows them still
    assert await rig.blobs("host-1", "compute").get(sha256) == content
    assert await put(content, "qcow2") == kept


async def test_who_may(rig: Rig) -> None:
    await rig.node.start()
    raw = b"x" * 4096
    for node, role in (("host-1", "compute"), ("gate-1", "gateway"), ("store-2", "storage")):
        with pytest.raises(Forbidden):
            await rig.blobs(node, role).put(raw, "raw")
    kept = await rig.blobs("controller-1", "controller").put(raw, "raw")
    for role in ("edge", "gateway"):
        with pytest.raises(Forbidden):
            await rig.blobs("gate-1", role).get(kept.sha256)
    stranger = rig.blobs("controller-1", "controller")
    with pytest.raises(NotFound):
        await stranger.get("0" * 64)
    for bad in ("", "../" + "0" * 61, "A" * 64):
        with pytest.raises(InvalidArgument):
            await stranger.get(bad)
    with pytest.raises(InvalidArgument):
        await stranger.get(kept.sha256, offset=4097)


async def test_hostile_images_are_refused_and_leave_nothing(rig: Rig, tmp_path: Path) -> None:
    await rig.node.start()
    put = rig.blobs("controller-1", "controller").put
    for name, declared, content in hostile.corpus(tmp_path):
        try:
            kept = await put(content, declared)
        except SkyrackError as error:
            assert isinstance(error, InvalidArgument), (name, error)
            print(f"{name}: {error.message}")
        else:
            raise AssertionError(f"{name} was kept: {kept}")
    assert names(rig.node) == []


async def test_sums_and_sizes_are_checked(rig: Rig) -> None:
    await rig.node.start()
    put = rig.blobs("controller-1", "controller").put
    with pytest.raises(InvalidArgument, match="sha256"):
        await put(b"x" * 4096, "raw", sha256="0" * 64)
    with pytest.raises(OutOfSpace, match="4095"):
        await put(b"x" * 4096, "raw", size_bytes_max=4095)
    await put(b"x" * 4096, "raw", size_bytes_max=4096)
    assert len(names(rig.node)) == 2


async def test_an_upload_cut_in_the_middle_leaves_nothing(rig: Rig) -> None:
    await rig.node.start()

    async def half(end: str) -> AsyncIterator[blob_pb2.PutBlobRequest]:
        yield blob_pb2.PutBlobRequest(begin=blob_pb2.PutBlobBegin(format="raw"))
        for _ in range(3):
            yield blob_pb2.PutBlobRequest(chunk=b"y" * (1 << 20))
        await eventually(lambda: any(path.stat().st_size >= 2 << 20 for path in (rig.node.images / "incoming").iterdir()))
        if end == "hang":
            await asyncio.Event().wait()

    async with rig.blobs("controller-1", "controller").stub() as stub:
        with pytest.raises(grpc.RpcError):  # ends without commit
            await stub.Put(half("end"), timeout=HANG_S, wait_for_ready=True)
        await eventually(lambda: names(rig.node) == [])
        call = stub.Put(half("hang"), timeout=HANG_S, wait_for_ready=True)
        await eventually(lambda: any(path.stat().st_size >= 2 << 20 for path in (rig.node.images / "incoming").iterdir()))
        call.cancel()
        await eventually(lambda: names(rig.node) == [])
        wrong = iter([blob_pb2.PutBlobRequest(chunk=b"y")])
        with pytest.raises(grpc.RpcError, match="begin"):
            await stub.Put(wrong, timeout=HANG_S)


@pytest.mark.parametrize("name", ["blob-received", "blob-described", "blob-kept"])
async def test_death_at_each_step_of_an_upload(rig: Rig, name: str) -> None:
    await rig.node.start(name)
    client, content = rig.blobs("controller-1", "controller"), b"z" * 100_000
    with pytest.raises(SkyrackError):
        await client.put(content, "raw")
    assert await rig.node.ended() == failpoint.EXIT_CODE
    await rig.node.start()
    sha256 = hashlib.sha256(content).hexdigest()
    if name == "blob-kept":
        assert await client.get(sha256) == content
    else:
        with pytest.raises(NotFound):
            await client.get(sha256)
        assert names(rig.node) == []
        await client.put(content, "raw")
    assert names(rig.node) == [sha256, f"{sha256}.json"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "stor-test", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.parametrize("reserve_mib", [0, 4])
async def test_a_full_disk(rig: Rig, small_disk: Path, reserve_mib: int) -> None:
    node = Node(rig.pki, rig.controller_port, images_dir=small_disk, reserve_mib=reserve_mib)
    try:
        await node.start()
        rig.node.port = node.port
        client = rig.blobs("controller-1", "controller")
        kept = await client.put(b"a" * (4 << 20), "raw")
        with pytest.raises(OutOfSpace, match="full"):
            await client.put(b"b" * (20 << 20), "raw")
        assert names(node) == [kept.sha256, f"{kept.sha256}.json"]
        await client.put(b"c" * (4 << 20), "raw")  # and it goes on
    finally:
        await node.clear()


async def test_removal_waits_for_readers(rig: Rig) -> None:
    await rig.node.start()
    content = bytes(range(256)) * 4096 * UPLOADED_MIB
    start_s = time.perf_counter()
    kept = await rig.blobs("controller-1", "controller").put(content, "raw")
    print(f"put {UPLOADED_MIB} MiB: {len(content) / 1e6 / (time.perf_counter() - start_s):.0f} MB/s")
    async with rig.blobs("host-1", "compute").stub() as stub:
        reading = stub.Get(blob_pb2.GetBlobRequest(sha256=kept.sha256), timeout=HANG_S)
        parts = aiter(reading)
        size = len((await anext(parts)).data)
        rig.controller.want(blob(kept.sha256, absent=True))
        assert "read" in (await rig.controller.until(f"blob/{kept.sha256}", PENDING)).fault
        async for part in parts:
            size += len(part.data)
        assert size == len(content)
    await rig.controller.until(f"blob/{kept.sha256}", GONE)
    assert names(rig.node) == []


async def test_death_in_the_removal_of_an_image(rig: Rig) -> None:
    await rig.node.start("blob-unlinked")
    kept = await rig.blobs("controller-1", "controller").put(b"r" * 5000, "raw")
    rig.controller.want(blob(kept.sha256, absent=True))
    assert await rig.node.ended() == failpoint.EXIT_CODE
    rig.controller.seen.clear()
    await rig.node.start()
    await rig.controller.until(f"blob/{kept.sha256}", GONE)
    assert names(rig.node) == []


async def test_a_wanted_image_that_is_not_here_is_told(rig: Rig) -> None:
    await rig.node.start()
    rig.controller.want(blob("0" * 64))
    assert "does not hold" in (await rig.controller.until(f"blob/{'0' * 64}", FAILED)).fault


async def test_a_volume_from_an_image(rig: Rig, tmp_path: Path) -> None:
    await rig.node.start()
    content = hostile.good(tmp_path, written=b"\x33" * (1 << 20))
    kept = await rig.blobs("controller-1", "controller").put(content, "qcow2")
    image = agent_pb2.ImageRef(sha256=kept.sha256, format="qcow2", virtual_bytes=kept.virtual_bytes, size_bytes=kept.size_bytes)
    v, a = new_id(), new_id()
    rig.controller.want(volume(v, gib=1, image=image), export(a, v, "n"))
    await rig.controller.until_settled()
    told = await rig.nbd("host-1").io("n", "length", "read -P 0x33 0 1M", "read -P 0 16M 64k")
    assert "1 GiB" in told and "1048576/1048576" in told and "65536/65536" in told


async def test_an_image_that_does_not_fit_or_is_nowhere(rig: Rig, tmp_path: Path) -> None:
    await rig.node.start()
    kept = await rig.blobs("controller-1", "controller").put(hostile.good(tmp_path, size="2048M"), "qcow2")
    big = agent_pb2.ImageRef(sha256=kept.sha256, format="qcow2", virtual_bytes=1)  # even when the controller is wrong
    nowhere = agent_pb2.ImageRef(sha256="1" * 64, format="qcow2", virtual_bytes=1)
    v, w = new_id(), new_id()
    rig.controller.want(volume(v, gib=1, image=big), volume(w, gib=1, image=nowhere))
    assert "needs" in (await rig.controller.until(f"volume/{v}", FAILED)).fault
    assert "no storage node" in (await rig.controller.until(f"volume/{w}", FAILED)).fault
    assert residue(rig.node)["volumes"] == []


async def test_a_volume_from_an_image_on_another_node(rig: Rig, tmp_path: Path) -> None:
    await rig.node.start()
    other = Node(rig.pki, rig.controller_port)
    try:
        content = hostile.good(tmp_path, written=b"\x44" * 4096)
        kept = await rig.blobs("controller-1", "controller").put(content, "qcow2")
        await rig.node.kill()  # one controller, one set of orders: only the second node shall follow them
        lonely = rig.node.directory / "storaged.toml"
        lonely.write_text(lonely.read_text().replace(f":{rig.controller_port}", ":9"))
        await rig.node.start()
        image = agent_pb2.ImageRef(sha256=kept.sha256, format="qcow2", sources=["127.0.0.1:9", f"127.0.0.1:{rig.node.port}"])
        v = new_id()
        rig.controller.want(volume(v, image=image))
        rig.controller.seen.clear()
        await other.start()
        await rig.controller.until(f"volume/{v}", READY)
        assert (await rig.controller.until(f"blob/{kept.sha256}", READY)).size_bytes == len(content)
    finally:
        await other.clear()
