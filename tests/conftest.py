"""For every test: the machine's own network is as it was when all of them have run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis  # noqa: F401  here, not by its plugin in the last summary: Python 3.11.2 can't parse while a finalizer fails
import pytest

from tests import machine


@pytest.fixture(scope="session", autouse=True)
def machine_untouched() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    before = machine.picture()
    yield
    assert machine.changes(before, machine.picture()) == {}
