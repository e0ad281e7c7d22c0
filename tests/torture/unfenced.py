"""The negative control: controllerd without its fences. An entry is appended whoever leads and whatever is in its slot, and a
lease never ends. The checker must find what comes of it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from controllerd.daemon import main
from controllerd.leadership.kv import Created, Delete, Put, TxnResult
from controllerd.leadership.lease import Lease
from controllerd.leadership.replicated_log import ReplicatedLog
from tests.torture.fenced import with_wrong_clock


class _Careless:
    """A consensus store that is asked to check nothing."""

    def __init__(self, kv: object) -> None:
        self._kv = kv

    def __getattr__(self, name: str) -> object:
        return getattr(self._kv, name)

    async def txn(self, _conditions: Sequence[Created], changes: Sequence[Put | Delete], look: Sequence[str] = ()) -> TxnResult:
        return await self._kv.txn([], changes, look)  # type: ignore[attr-defined,no-any-return]


def without_fences() -> None:
    begin = ReplicatedLog.__init__

    def careless(log: ReplicatedLog, kv: object, *rest: object) -> None:
        begin(log, _Careless(kv), *rest)  # type: ignore[arg-type]

    ReplicatedLog.__init__ = careless  # type: ignore[method-assign,assignment]
    Lease.rest_s = lambda _lease, _now_s: 60.0  # type: ignore[method-assign]


if __name__ == "__main__":
    with_wrong_clock()
    without_fences()
    sys.exit(main())
