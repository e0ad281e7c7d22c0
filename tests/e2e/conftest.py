"""One rack for all end-to-end tests: up once, down at the end whatever happened; on it one tenant, and the tenant's site.

Guests take their time to boot, so tests share them, and run in the order of STORY: what hurts comes last, and the search for
leaked secrets when all else has written its logs.

SKYRACK_E2E_RACK=NAME takes a rack that is up already (in SKYRACK_SANDBOX_DIR) and leaves it up: for writing tests.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from skyrack.client.sync import Cloud
from skyrack.sandbox import state
from tests.e2e import site as sites
from tests.e2e import tenant as tenants
from tests.e2e.remains import Picture, picture
from tests.e2e.running_rack import RunningRack
from tests.e2e.site import Site
from tests.e2e.tenant import Tenant

STORY = (
    "test_failover",  # on a rack of its own, which goes before the other comes up
    "test_rack_is_up", "test_reflection", "test_site", "test_usage_metrics", "test_without_controller", "test_restore",
    "test_nothing_left", "test_refusals", "test_faults", "test_secrets",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [place for place, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    story = sorted((items[place] for place in here), key=lambda item: STORY.index(item.path.stem))
    for place, item in zip(here, story, strict=True):
        items[place] = item


@contextmanager
def brought_up(letter: str, kept: str, **counts: int) -> Iterator[RunningRack]:
    """A rack of its own, named with that letter; or `kept`, the name of one that is up already, and stays up."""
    if kept:
        running = RunningRack(kept, str(state.base()))
        running.adopt()
        yield running
        return
    base = tempfile.mkdtemp(prefix="skyrack-e2e-")
    running = RunningRack(f"{letter}{os.getpid()}", base)
    try:
        running.up(**counts)
        yield running
    except BaseException:
        print_logs(running)
        raise
    finally:
        running.down()
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="package")
def rack() -> Iterator[RunningRack]:
    """One controller, one network node, two compute nodes, one storage node; every daemon UP."""
    kept = os.environ.get("SKYRACK_E2E_RACK", "")
    with brought_up("e", kept, controllers=1, networks=1, computes=2, storages=1) as running:
        yield running


@pytest.fixture(scope="package")
def admin(rack: RunningRack) -> Iterator[Cloud]:
    with Cloud.connect(environ=rack.env) as cloud:
        yield cloud


@pytest.fixture(scope="package")
def tenant(rack: RunningRack, admin: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenant]:
    settled = tenants.settle(rack, admin, tmp_path_factory.mktemp("tenant"))
    yield settled
    settled.cloud.close()


@pytest.fixture(scope="package")
def before(rack: RunningRack, admin: Cloud, tenant: Tenant) -> Picture:
    """What the nodes hold while the tenant has no server."""
    return picture(rack, admin)


@pytest.fixture(scope="package")
def site(rack: RunningRack, tenant: Tenant, before: Picture) -> Site:
    return sites.build(rack, tenant)


def print_logs(running: RunningRack) -> None:
    for path in sorted(running.directory.glob("hosts/*/var/log/skyrack/*.log")):
        tail = path.read_text(errors="replace").splitlines()[-15:]
        print(f"== {path.relative_to(running.directory)}", *tail, sep="\n", file=sys.stderr)
