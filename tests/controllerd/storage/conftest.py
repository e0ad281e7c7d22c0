"""The servers' world, with storage nodes that also tell when an export is withdrawn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from skyrack.v1 import agent_pb2 as pb
from tests.controllerd.server.conftest import operator, stranger, tenant  # noqa: F401
from tests.controllerd.server.rig import Rig, ScriptedNode

WITHDRAWN = (
    "SELECT a.id FROM attachment a JOIN volume v ON v.id = a.volume_id"
    " WHERE v.node_id = ? AND a.exported = 0 AND a.observed_export NOT IN ('', 'GONE')"
)


class StorageRig(Rig):
    fault = ""  # with which storage nodes fail at each volume that they shall make

    async def obey(self, scripted: ScriptedNode) -> None:
        await super().obey(scripted)
        gone = pb.ObservedExport(state=pb.OBSERVED_STATE_GONE)
        rows = await self.rows(WITHDRAWN, scripted.node.id)
        if rows:
            await self.report(scripted, "storaged", [pb.ObservedObject(id=row["id"], export=gone) for row in rows])

    def _done(self, scripted: ScriptedNode, desired: pb.DesiredObject) -> pb.ObservedObject | None:
        if self.fault and desired.WhichOneof("spec") == "volume" and not desired.volume.absent:
            failed = pb.ObservedVolume(state=pb.OBSERVED_STATE_FAILED, fault=self.fault)
            return pb.ObservedObject(id=desired.id, volume=failed)
        return super()._done(scripted, desired)


@pytest.fixture
async def rig(tmp_path: Path, runtime, clock) -> AsyncIterator[StorageRig]:  # type: ignore[no-untyped-def]
    rig = StorageRig(tmp_path / "cloud.db", runtime, clock)
    await rig.open()
    yield rig
    await rig.close()
