"""The SDK for programs without an event loop: the same names, waiting instead of awaiting.

    with skyrack.client.sync.Cloud.connect() as cloud:
        for server in cloud.servers.list():
            print(server.name)

A thread of its own runs the loop; progress callbacks are called in that thread. One `Cloud` may be used by many threads.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

from skyrack.client import cloud as asynchronous

T = TypeVar("T")


class Cloud:
    """`skyrack.client.Cloud` with plain methods: coroutines return, async iterators iterate."""

    def __init__(self, inner: asynchronous.Cloud) -> None:
        self._inner = inner
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="skyrack-client", daemon=True)
        self._thread.start()

    @classmethod
    def connect(cls, *args: Any, **kwargs: Any) -> Cloud:
        """Takes what `skyrack.client.Cloud.connect` takes."""
        return cls(asynchronous.Cloud.connect(*args, **kwargs))

    def __getattr__(self, noun: str) -> Any:
        if noun not in asynchronous.NOUNS:
            raise AttributeError(noun)
        return _Noun(self, noun)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for `work`, carried out in the private loop. An interrupt (Ctrl-C) cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, rows: AsyncIterator[T]) -> Iterator[T]:
        """The rows of an async iterator, one at a time."""
        end = object()

        async def step() -> Any:
            return await anext(rows, end)

        while (row := self.run(step())) is not end:
            yield row

    def close(self) -> None:
        if self._thread.is_alive():
            self.run(self._inner.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Cloud:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class _Noun:
    """One noun's methods, made synchronous as they are called."""

    def __init__(self, cloud: Cloud, noun: str) -> None:
        self._cloud, self._noun = cloud, noun

    def __getattr__(self, verb: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            async def begin() -> Any:
                # Made here: a collection belongs to the loop it is first used in.
                answer = getattr(getattr(self._cloud._inner, self._noun), verb)(*args, **kwargs)
                return await answer if inspect.isawaitable(answer) else answer

            answer = self._cloud.run(begin())
            return self._cloud.iterate(answer) if hasattr(answer, "__anext__") else answer

        return call
