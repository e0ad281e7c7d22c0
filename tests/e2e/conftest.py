"""One rack for all end-to-end tests: up once, down at the end whatever happened.

SKYRACK_E2E_RACK=NAME takes a rack that is up already (in SKYRACK_SANDBOX_DIR) and leaves it up: for writing tests.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest

from skyrack.sandbox import state
from tests.e2e.running_rack import RunningRack


@pytest.fixture(scope="session")
def rack() -> Iterator[RunningRack]:
    """One controller, one network node, two compute nodes, one storage node; every daemon UP."""
    if kept := os.environ.get("SKYRACK_E2E_RACK"):
        running = RunningRack(kept, str(state.base()))
        running.adopt()
        yield running
        return
    base = tempfile.mkdtemp(prefix="skyrack-e2e-")
    running = RunningRack(f"e{os.getpid()}", base)
    try:
        running.up(controllers=1, networks=1, computes=2, storages=1)
        yield running
    except BaseException:
        _print_logs(running)
        raise
    finally:
        running.down()
        shutil.rmtree(base, ignore_errors=True)


def _print_logs(running: RunningRack) -> None:
    for path in sorted(running.directory.glob("hosts/*/var/log/skyrack/*.log")):
        tail = path.read_text(errors="replace").splitlines()[-15:]
        print(f"== {path.relative_to(running.directory)}", *tail, sep="\n", file=sys.stderr)
