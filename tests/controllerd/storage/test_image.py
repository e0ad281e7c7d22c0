"""Images: what becomes of an upload, whatever happens to it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest

from controllerd.agents.blob import Stored
from controllerd.app.cloud import Cloud, Once
from controllerd.app.image import GIB, Images
from controllerd.domain.node import AgentRecord, Node
from controllerd.domain.page import Page
from controllerd.domain.policy import Caller
from controllerd.store import image as store
from controllerd.store import quota, tombstone
from controllerd.store.database import Database, Tx
from controllerd.store.image import IMAGES
from controllerd.store.node import NODES, put_agent
from daemonkit.errors import Conflict, InvalidArgument, NotFound, OutOfSpace, QuotaExceeded, Unavailable
from tests.controllerd.conftest import ManualClock

ANEW = Once("", "", "")
NODE = "id-s1"


class FakeBlobs:
    """A storage node in memory: refuses content that begins with "bad"."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.size_max = -1
        self.hold: asyncio.Event | None = None
        self.full = False

    async def put(self, address: str, format_: str, size_bytes_max: int, content: AsyncIterator[bytes | str]) -> Stored:
        assert address == "10.0.0.9:7730"
        data, self.size_max = b"", size_bytes_max
        async for part in content:
            data += part if isinstance(part, bytes) else b""
            if self.full:
                raise OutOfSpace("the disk is full")
            if data.startswith(b"bad"):
                raise InvalidArgument("content", "is not qcow2")
        if self.hold:
            await self.hold.wait()
        digest = hashlib.sha256(data).hexdigest()
        self.kept[digest] = data
        return Stored(digest, len(data), 1 << 30, "md5", "sha512")

    async def get(self, address: str, sha256: str, offset: int) -> AsyncIterator[bytes]:
        yield self.kept[sha256][offset:]


async def content(*parts: bytes, commit: bool = True, error: Exception | None = None) -> AsyncIterator[bytes | str]:
    for part in parts:
        yield part
    if error:
        raise error
    if commit:
        yield ""


@pytest.fixture
def blobs() -> FakeBlobs:
    return FakeBlobs()


@pytest.fixture
async def images(cloud: Cloud, blobs: FakeBlobs) -> Images:
    inventory = {"address": "10.0.0.9:7730", "storage": {"images_free_bytes": "1000", "volumes_total_gib": "100"}}

    def insert(tx: Tx) -> None:
        NODES.insert(tx, Node(NODE, "s1", ("storage",), True, "1", 1.0))
        put_agent(tx, AgentRecord(NODE, "storaged", True, tx.now, False, "1", "b", inventory))

    await cloud.database.write(insert)
    return Images(cloud, blobs)


async def queued(images: Images, caller: Caller, name: str = "i") -> str:
    return (await images.create(caller, name, "qcow2", False, 0, 0, {}, ANEW)).id


async def test_from_upload_to_download(images: Images, member: Caller, blobs: FakeBlobs, database: Database) -> None:
    image_id = await queued(images, member)
    with pytest.raises(Conflict, match="QUEUED"):
        async for _ in images.download(member, image_id, 0):
            pass
    active = await images.upload(member, image_id, content(b"abc", b"def"))
    assert (active.state, active.size_bytes, active.sha256) == ("ACTIVE", 6, hashlib.sha256(b"abcdef").hexdigest())
    assert await images.get(member, image_id) == active and blobs.size_max == 200 * GIB
    assert [chunk async for chunk in images.download(member, image_id, 2)] == [b"cdef"]
    with pytest.raises(InvalidArgument):
        async for _ in images.download(member, image_id, 7):
            pass
    with pytest.raises(Conflict, match="can't be changed"):
        await images.upload(member, image_id, content(b"other"))
    assert await database.read(lambda tx: store.sources(tx, active.sha256)) == ["10.0.0.9:7730"]


async def test_a_cut_upload_can_be_repeated(images: Images, member: Caller) -> None:
    image_id = await queued(images, member)
    for error in (Unavailable("cut"), InvalidArgument("chunk", "too large"), RuntimeError("bug")):
        with pytest.raises(type(error)):
            await images.upload(member, image_id, content(b"abc", error=error))
        assert (await images.get(member, image_id)).state == "QUEUED"
    assert (await images.upload(member, image_id, content(b"abc"))).state == "ACTIVE"


async def test_content_that_is_not_what_it_says(images: Images, member: Caller, database: Database) -> None:
    image_id = await queued(images, member)
    with pytest.raises(InvalidArgument):
        await images.upload(member, image_id, content(b"bad"))
    shown = await images.get(member, image_id)
    assert (shown.state, shown.fault_reason) == ("ERROR", "INVALID_ARGUMENT") and "not qcow2" in shown.fault_message
    with pytest.raises(Conflict):
        await images.upload(member, image_id, content(b"abc"))
    assert await database.read(lambda tx: tx.value("SELECT count(*) FROM blob")) == 0


async def test_a_full_disk_and_no_node(images: Images, member: Caller, blobs: FakeBlobs, database: Database) -> None:
    image_id = await queued(images, member)
    blobs.full = True
    with pytest.raises(OutOfSpace):
        await images.upload(member, image_id, content(b"abc"))
    await database.write(lambda tx: tx.run("UPDATE agent SET connected = 0"))
    with pytest.raises(Unavailable):
        await images.upload(member, image_id, content(b"abc"))
    assert (await images.get(member, image_id)).state == "QUEUED"


async def test_cancelled_at_any_moment(images: Images, member: Caller, blobs: FakeBlobs) -> None:
    """Also when the content has just been accepted: an image is never taken back from ACTIVE."""
    states = set()
    for turns in range(40):
        image_id = await queued(images, member)
        upload = asyncio.create_task(images.upload(member, image_id, content(b"a", b"b")))
        for _ in range(turns):
            await asyncio.sleep(0)
        upload.cancel()
        await asyncio.wait([upload])
        await asyncio.sleep(0.01)
        shown = await images.get(member, image_id)
        states.add(shown.state)
        assert bool(shown.sha256) == (shown.state == "ACTIVE") and shown.state in ("QUEUED", "ACTIVE")
        await images.delete(member, image_id)
    assert states == {"QUEUED", "ACTIVE"}


async def test_one_upload_at_a_time_and_deletion_in_its_midst(images: Images, member: Caller, blobs: FakeBlobs) -> None:
    image_id = await queued(images, member)
    blobs.hold = asyncio.Event()
    upload = asyncio.create_task(images.upload(member, image_id, content(b"abc")))
    await asyncio.sleep(0.01)
    with pytest.raises(Conflict, match="under way"):
        await images.upload(member, image_id, content(b"abc"))
    await images.delete(member, image_id)
    blobs.hold.set()
    with pytest.raises(NotFound):
        await upload
    assert not (await images.list(member, "", Page())).items


async def test_quota_counts_what_is_there(images: Images, member: Caller, blobs: FakeBlobs, database: Database) -> None:
    for _ in range(20):
        await queued(images, member)
    with pytest.raises(QuotaExceeded):
        await queued(images, member)
    await database.write(lambda tx: quota.set_limit(tx, member.project_id, "image_gib", 1))
    found = (await images.list(member, "", Page())).items
    assert (await images.upload(member, found[0].id, content(b"abc"))).state == "ACTIVE" and blobs.size_max == GIB
    with pytest.raises(QuotaExceeded):
        await images.upload(member, found[1].id, content(b"other"))
    await database.write(lambda tx: quota.set_limit(tx, member.project_id, "image_gib", -1))
    assert (await images.upload(member, found[1].id, content(b"other"))).state == "ACTIVE" and blobs.size_max == 0
    await database.write(lambda tx: quota.set_limit(tx, member.project_id, "images", 0))
    with pytest.raises(QuotaExceeded):
        await queued(images, member)


async def test_a_restart_ends_uploads(images: Images, member: Caller, database: Database) -> None:
    saving, other = await queued(images, member), await queued(images, member)
    await database.write(lambda tx: IMAGES.update(tx, saving, state="SAVING"))
    await database.write(lambda tx: IMAGES.update(tx, other, state="ERROR"))
    assert await database.write(store.end_uploads) == 1
    assert (await images.get(member, saving)).state == "QUEUED" and (await images.get(member, other)).state == "ERROR"


async def test_content_goes_with_the_last_that_names_it(
    images: Images, member: Caller, database: Database, clock: ManualClock
) -> None:
    async def blobs() -> tuple[int, list[str]]:
        await database.write(lambda tx: store.collect(tx, tx.now - store.UNREFERENCED_KEPT_S))
        count = await database.read(lambda tx: tx.value("SELECT count(*) FROM blob"))
        return count, await database.read(lambda tx: tombstone.of_node(tx, NODE, "blob"))

    first, second = await queued(images, member), await queued(images, member)
    sha256 = (await images.upload(member, first, content(b"abc"))).sha256
    assert (await images.upload(member, second, content(b"abc"))).sha256 == sha256
    await images.delete(member, first)
    clock.forward(store.UNREFERENCED_KEPT_S + 1)
    assert await blobs() == (1, [])
    await images.delete(member, second)
    assert await blobs() == (0, [sha256])
    third = await queued(images, member)
    with pytest.raises(Unavailable, match="being removed"):  # the node may be about to drop what it just took for known
        await images.upload(member, third, content(b"abc"))
    await database.write(lambda tx: tombstone.lift(tx, NODE, "blob", sha256))
    assert (await images.upload(member, third, content(b"abc"))).state == "ACTIVE"


async def test_who_sees_and_changes(images: Images, member: Caller, admin: Caller, caller) -> None:  # type: ignore[no-untyped-def]
    stranger = await caller("beta")
    mine = await queued(images, member)
    public = (await images.create(admin, "p", "raw", True, 0, 0, {}, ANEW)).id
    for act in (images.get(stranger, mine), images.update(stranger, mine, name="x"), images.delete(stranger, mine),
                images.upload(stranger, mine, content(b"a")), images.update(stranger, public, name="x"),
                images.delete(stranger, public), images.upload(stranger, public, content(b"a"))):  # fmt: skip
        with pytest.raises(NotFound):
            await act
    assert [i.id for i in (await images.list(stranger, "", Page())).items] == [public]
    assert (await images.get(stranger, public)).public
