"""The controller's blob client against the real BlobService of a storage node, over mutual TLS."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controllerd.agents.blob import CHUNK_BYTES_MAX, GrpcBlobStore
from daemonkit import rpc
from daemonkit.errors import InvalidArgument, NotFound, OutOfSpace, Unavailable
from daemonkit.runtime import system_runtime
from daemonkit.tls import TlsFiles
from skyrack.v1 import blob_pb2_grpc
from storaged.images.store import ImageStore
from storaged.transfer import BlobServicer
from tests.pki import Pki


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    runtime, pki = system_runtime(), Pki(tmp_path / "pki")
    pki.node("controller", "controller")
    images = ImageStore(tmp_path / "images", 0, runtime)
    await images.open()
    blobs, server = BlobServicer(images, runtime), rpc.Server(runtime.new_id)
    blob_pb2_grpc.add_BlobServiceServicer_to_server(blobs, server.grpc)
    port = server.bind("127.0.0.1:0", TlsFiles(pki.node("s1", "storage")).server(clients_must_show_certificate=True))
    await server.start(["skyrack.v1.BlobService"])
    yield f"127.0.0.1:{port}"
    await server.stop(0)
    blobs.close()
    images.close()


@pytest.fixture
def store(tmp_path: Path) -> GrpcBlobStore:
    return GrpcBlobStore(TlsFiles(tmp_path / "pki" / "controller"))


async def parts(data: bytes, sha256: str | None = "", error: Exception | None = None) -> AsyncIterator[bytes | str]:
    for start in range(0, len(data), CHUNK_BYTES_MAX):
        yield data[start : start + CHUNK_BYTES_MAX]
    if error:
        raise error
    if sha256 is not None:
        yield sha256


def qcow2(path: Path) -> bytes:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "64M"], check=True)
    return path.read_bytes()


async def test_in_and_out(address: str, store: GrpcBlobStore, tmp_path: Path) -> None:
    data = qcow2(tmp_path / "i") + b"\0" * (3 << 20)
    for _ in range(2):  # what is there already is a success
        stored = await store.put(address, "qcow2", 0, parts(data, hashlib.sha256(data).hexdigest()))
        assert (stored.sha256, stored.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
        assert stored.virtual_bytes == 64 << 20 and stored.md5 == hashlib.md5(data).hexdigest()
    got = b"".join([chunk async for chunk in store.get(address, stored.sha256, 100)])
    assert got == data[100:]
    with pytest.raises(NotFound):
        async for _chunk in store.get(address, "0" * 64, 0):
            pass


async def test_what_the_node_refuses(address: str, store: GrpcBlobStore, tmp_path: Path) -> None:
    """Its reason reaches us, however much was still to be sent."""
    for data in (b"no image" * 100, b"no image" * (1 << 20)):
        with pytest.raises(InvalidArgument):
            await store.put(address, "qcow2", 0, parts(data))
    with pytest.raises(InvalidArgument):
        await store.put(address, "raw", 0, parts(b"x" * 512, "0" * 64))
    with pytest.raises(OutOfSpace):
        await store.put(address, "raw", 1 << 20, parts(b"x" * (8 << 20)))


async def test_what_the_sender_breaks_off(address: str, store: GrpcBlobStore, tmp_path: Path) -> None:
    data = b"x" * (4 << 20)
    for error in (Unavailable("the tenant's stream was cut"), InvalidArgument("part", "nonsense")):
        with pytest.raises(type(error)) as raised:
            await store.put(address, "raw", 0, parts(data, error=error))
        assert raised.value is error
    with pytest.raises(NotFound):
        async for _chunk in store.get(address, hashlib.sha256(data).hexdigest(), 0):
            pass


async def test_a_node_that_is_not_there(store: GrpcBlobStore, address: str) -> None:
    with pytest.raises(Unavailable):
        await store.put("127.0.0.1:1", "raw", 0, parts(b"x"))
