"""A process that writes until it is killed or its disk is full. A line on stdout for each write that was acknowledged.

python -m tests.controllerd.store.writer DATABASE kill       # until killed
python -m tests.controllerd.store.writer DATABASE full       # into a full disk, then with room again
python -m tests.controllerd.store.writer DATABASE snapshot   # for which there is no room
python -m tests.controllerd.store.writer DATABASE replicated LOG    # until a failpoint ends it; LOG: a directory
"""

from __future__ import annotations

import asyncio
import os
import sys
from itertools import count
from pathlib import Path

from controllerd.leadership.commit_log import CommitLog, LocalLog
from controllerd.leadership.entry import Entry, decode, encode
from controllerd.store import snapshot
from controllerd.store.database import Database, Tx
from daemonkit.errors import OutOfSpace, Unavailable
from daemonkit.runtime import system_runtime

LANES = 20
ROUNDS_MAX = 40


class FileLog:
    """A replicated log in a directory: a file an entry, there or not there."""

    replicated = True
    ahead_s: float | None = None

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def next_epoch(self, last: int) -> int:
        return max([last, *(entry.epoch for entry in self.entries())]) + 1

    async def append(self, entry: Entry) -> None:
        draft = self._directory / "draft"
        draft.write_bytes(encode(entry))
        os.link(draft, self._directory / f"{entry.seq:020d}")  # refuses a slot that is taken
        draft.unlink()

    def assert_leading(self) -> None:
        return None

    def entries(self) -> list[Entry]:
        slots = sorted(path for path in self._directory.iterdir() if path.name.isdigit())
        return [decode(int(path.name), path.read_bytes()) for path in slots]


def insert(tx: Tx, name: str, filling: str) -> None:
    tx.run("INSERT INTO project VALUES (?, ?, ?, 1, ?)", tx.new_id(), name, filling, tx.now)


async def lane(database: Database, number: int) -> None:
    for n in count():
        name = f"{database.epoch}-{number}-{n}"
        await database.write(lambda tx, name=name: insert(tx, name, ""))  # type: ignore[misc]
        print(name, flush=True)


async def until_killed(database: Database) -> None:
    await asyncio.gather(*(lane(database, number) for number in range(LANES)))


async def a_while(database: Database) -> None:
    """One lane: what was acknowledged is told before the next commit begins."""
    for n in range(ROUNDS_MAX):
        name = f"{database.epoch}-{n}"
        await database.write(lambda tx, name=name: insert(tx, name, ""))  # type: ignore[misc]
        print(name, flush=True)


async def into_a_full_disk(database: Database, directory: Path) -> None:
    """`directory` is on a small file system of its own, where this takes all space but a little beforehand."""
    ballast = directory / "ballast"
    ballast.write_bytes(b"\0" * (1 << 20))
    refused = 0
    for n in range(2000):
        try:
            await database.write(lambda tx, n=n: insert(tx, f"row-{n}", "x" * 2000))  # type: ignore[misc]
            print(f"row-{n}", flush=True)
        except Unavailable:
            refused += 1
            if refused == 5:
                ballast.unlink()
    print(f"refused {refused}", flush=True)


async def without_room(database: Database, target: Path) -> None:
    """What became of a snapshot, and of a write after it."""
    await database.write(lambda tx: insert(tx, "large", "x" * (1 << 20)))
    try:
        await snapshot.take(database, target)
    except OutOfSpace:
        print("refused", flush=True)
    await database.write(lambda tx: insert(tx, "after", ""))
    print("after", flush=True)


async def main(path: Path, how: str, *log: str) -> None:
    commit_log: CommitLog = FileLog(Path(log[0])) if log else LocalLog()
    database = Database(path, commit_log, system_runtime())
    await database.open()
    commits = asyncio.create_task(database.run())
    if how == "full":
        await into_a_full_disk(database, path.parent)
    elif how == "snapshot":
        await without_room(database, path.parent / "small" / "copy")
    else:
        await {"kill": until_killed, "replicated": a_while}[how](database)
    commits.cancel()
    await asyncio.wait([commits])
    await database.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
