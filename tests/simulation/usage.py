"""Every usage sample that agents have put by, and what they add up to when each is counted once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from controllerd.domain.usage import Counters, Meter
from daemonkit.ledger import Ledger
from daemonkit.runtime import Runtime
from skyrack.v1 import agent_pb2


class Samples:
    def __init__(self) -> None:
        self._meters: dict[str, Meter] = {}
        self.count = 0

    def ledger(self, path: Path, runtime: Runtime) -> Ledger:
        return _RecordingLedger(path, runtime, self)

    def add(self, sample: agent_pb2.Sample) -> None:
        self.count += 1
        raw = Counters(**{name: getattr(sample, name) for name in Counters.__dataclass_fields__})
        self._meters[sample.server_id] = self._meters.get(sample.server_id, Meter()).read(raw, sample.memory_kib, 0.0)

    def total(self, server_id: str) -> Counters:
        return self._meters.get(server_id, Meter()).total


class _RecordingLedger(Ledger):
    def __init__(self, path: Path, runtime: Runtime, samples: Samples) -> None:
        super().__init__(path, runtime)
        self._samples = samples

    async def spool(self, samples: Iterable[agent_pb2.Sample]) -> None:
        kept = list(samples)
        await super().spool(kept)
        for sample in kept:
            self._samples.add(sample)
