"""What agents report, put into the store: the one writer of all observed_* columns.

An agent is believed only about what its node holds: every take function names the node in its condition. A noun's file in
`controllerd.agents.observed` takes one kind of object; `missing` is told, for a whole report, which ids are there, so that
what is not counts as gone.

Reports come in the order in which they were made, but a report may have been made before the agent saw what was pushed last:
take functions must bear news that are older than the row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from controllerd.domain.node import Node
from controllerd.store import recovery
from controllerd.store.database import STORE_ERRORS, Tx
from daemonkit.errors import InvalidArgument
from skyrack.v1 import agent_pb2

log = logging.getLogger(__name__)

ID_LENGTH_MAX = 128
FAULT_LENGTH_MAX = 1000  # of what a node says, what is kept
OBJECTS_MAX = 20_000  # in one report: more than a node can hold, and a second of the one writer's time at the worst


@dataclass(frozen=True)
class Taker:
    """`take(tx, node, id, observed)` for each object; `missing(tx, node, ids present)` at the end of a whole report."""

    agent: str
    take: Callable[[Tx, Node, str, Any], None]
    missing: Callable[[Tx, Node, set[str]], None]


TakeTelemetry = Callable[[Tx, Node, agent_pb2.Telemetry], int]


class Intake:
    def __init__(self, takers: Mapping[str, Taker], telemetry: TakeTelemetry) -> None:
        """`takers`: by the oneof field of ObservedObject."""
        self._takers = takers
        self.telemetry = telemetry

    def report(self, tx: Tx, node: Node, agent: str, report: agent_pb2.Report) -> None:
        """Errors: InvalidArgument for a monstrous one."""
        if len(report.objects) > OBJECTS_MAX:
            raise InvalidArgument("report.objects", f"at most {OBJECTS_MAX}, has {len(report.objects)}")
        present: dict[str, set[str]] = {kind: set() for kind, t in self._takers.items() if t.agent == agent}
        refused: list[tuple[str, Exception]] = []
        for item in report.objects:
            kind = str(item.WhichOneof("observed"))
            if kind in present:  # an agent of another kind has no say in it
                present[kind].add(item.id)
                if error := self._take(tx, node, kind, item):
                    refused.append((kind, error))
        if refused:  # a line for all: a node must not fill the log
            kind, error = refused[0]
            told = {"node": node.name, "kind": kind, "objects": len(refused)}
            log.error("a report was not understood", exc_info=error, extra=told)
        if report.whole:
            for kind, ids in present.items():
                self._takers[kind].missing(tx, node, ids)
            recovery.observed(tx, node.id, agent)

    def _take(self, tx: Tx, node: Node, kind: str, item: agent_pb2.ObservedObject) -> Exception | None:
        """Gives why it was not taken. One object that we cannot digest must not cost the node its session, again and again."""
        try:
            if len(item.id) > ID_LENGTH_MAX:
                raise InvalidArgument("report.objects.id", f"at most {ID_LENGTH_MAX} characters, has {len(item.id)}")
            with tx.savepoint():
                self._takers[kind].take(tx, node, item.id, getattr(item, kind))
        except STORE_ERRORS:
            raise
        except Exception as error:
            return error
        return None
