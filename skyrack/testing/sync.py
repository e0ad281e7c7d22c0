"""A whole cloud in one process for programs and tests without an event loop.

    with skyrack.testing.sync.Cloud() as cloud:
        server = cloud.client.servers.create("web", ...)

A thread of its own runs controller, agents and API.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from skyrack.client import sync
from skyrack.testing import cloud as asynchronous

T = TypeVar("T")


class Cloud:
    """`skyrack.testing.Cloud` with plain methods. `client` is a `skyrack.client.sync.Cloud`."""

    client: sync.Cloud

    def __init__(self, **options: Any) -> None:
        """Takes what `skyrack.testing.Cloud` takes."""
        self._inner = asynchronous.Cloud(**options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="skyrack-testing", daemon=True)

    @property
    def environ(self) -> dict[str, str]:
        return self._inner.environ

    @property
    def inner(self) -> asynchronous.Cloud:
        """What runs, with its rack and its controller. To be touched in `run` only."""
        return self._inner

    def connect(self, **login: Any) -> sync.Cloud:
        """As of `skyrack.testing.Cloud`. The caller closes it."""
        return sync.Cloud(self._inner.connect(**login))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for `work`, carried out in the loop of the cloud: `cloud.run(cloud.inner.rack.kill("computed-k1"))`."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.run(self._inner.__aenter__())
        except BaseException:
            self._end_loop()
            raise
        self.client = self.connect()
        return self

    def __exit__(self, *_error: object) -> None:
        self.client.close()
        try:
            self.run(self._inner.__aexit__(None, None, None))
        finally:
            self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
