"""Fixtures of storaged's functional tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pki import Pki
from tests.storaged.rig import BlobClient, Controller, NbdClient, Node, controller


@dataclass
class Rig:
    pki: Pki
    controller: Controller
    controller_port: int
    node: Node

    def nbd(self, node: str, *roles: str) -> NbdClient:
        return NbdClient(self.pki, node, self.node.nbd_port, *roles)

    def blobs(self, node: str, role: str) -> BlobClient:
        return BlobClient(self.pki.node(node, role), self.node.port)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A node that is not started yet."""
    pki = Pki(tmp_path / "pki")
    async with controller(pki) as (servicer, port):
        node = Node(pki, port)
        try:
            yield Rig(pki, servicer, port, node)
        finally:
            print(node.log() if (node.directory / "log").exists() else "")
            await node.clear()
