"""The fences taken away, to see that their absence is noticed: the negative control."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from controllerd.leadership import key
from controllerd.leadership.entry import Entry, encode
from controllerd.leadership.kv import Put
from controllerd.leadership.replicated_log import ReplicatedLog
from tests.simulation.run import Result, run, scratch
from tests.simulation.world import Shape


class UnfencedLog(ReplicatedLog):
    """Writes whoever leads, and over what is in the slot."""

    async def append(self, entry: Entry) -> None:
        """Errors: Unavailable."""
        await self._kv.txn([], [Put(key.slot(entry.seq), encode(entry))])


class BlindLog(ReplicatedLog):
    """Answers from an old copy as if it led."""

    def assert_leading(self) -> None:
        return None


@contextmanager
def _with(log: type[ReplicatedLog]) -> Iterator[None]:
    with patch("controllerd.terms.ReplicatedLog", log):
        yield


def first_failure(log: type[ReplicatedLog], seeds: range) -> Result | None:
    with _with(log), scratch() as directory:
        for seed in seeds:
            result = run(seed, directory, Shape(3))
            if result.failure:
                return result
    return None
