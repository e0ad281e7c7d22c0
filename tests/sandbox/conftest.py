from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from skyrack.sandbox.host import Host
from skyrack.sandbox.rack import Rack
from skyrack.sandbox.unit import Unit
from tests.sandbox import stand_in
from tests.sandbox.leftover import traces

HostMaker = Callable[..., Host]
RackMaker = Callable[[], Rack]


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory for sandboxes; its long name would break socket addresses that were given whole."""
    path = Path(tempfile.mkdtemp(prefix="sbx-" + "long" * 20))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def make_host(base: Path) -> AsyncIterator[HostMaker]:
    made: list[Host] = []

    def make(*units: Unit, virtualization: bool = False) -> Host:
        word = f"sbx{uuid.uuid4().hex[:8]}"
        made.append(Host("k1", base / word, namespace_name=word, units=units, virtualization=virtualization))
        return made[-1]

    yield make
    await asyncio.gather(*(host.remove() for host in made))
    assert [t for host in made if (t := traces(host.namespace, host.directory))] == []


@pytest.fixture
async def make_rack(base: Path) -> AsyncIterator[RackMaker]:
    made: list[Rack] = []

    def make() -> Rack:
        name = f"t{uuid.uuid4().hex[:8]}"
        made.append(Rack(name, base / name, units=stand_in.units))
        return made[-1]

    yield make
    for rack in made:
        await rack.down()
    assert [t for rack in made if (t := traces(rack.prefix, rack.directory))] == []
