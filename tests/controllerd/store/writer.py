"""A process that writes until it is killed or its disk is full. A line on stdout for each write that was acknowledged.

python -m tests.controllerd.store.writer DATABASE kill       # until killed
python -m tests.controllerd.store.writer DATABASE full       # into a full disk, then with room again
"""

from __future__ import annotations

import asyncio
import sys
from itertools import count
from pathlib import Path

from controllerd.leadership.commit_log import LocalLog
from controllerd.store.database import Database, Tx
from daemonkit.errors import Unavailable
from daemonkit.runtime import system_runtime

LANES = 20


def insert(tx: Tx, name: str, filling: str) -> None:
    tx.run("INSERT INTO project VALUES (?, ?, ?, 1, ?)", tx.new_id(), name, filling, tx.now)


async def lane(database: Database, number: int) -> None:
    for n in count():
        name = f"{database.epoch}-{number}-{n}"
        await database.write(lambda tx, name=name: insert(tx, name, ""))  # type: ignore[misc]
        print(name, flush=True)


async def until_killed(database: Database) -> None:
    await asyncio.gather(*(lane(database, number) for number in range(LANES)))


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


async def main(path: Path, how: str) -> None:
    database = Database(path, LocalLog(), system_runtime())
    await database.open()
    commits = asyncio.create_task(database.run())
    await (until_killed(database) if how == "kill" else into_a_full_disk(database, path.parent))
    commits.cancel()
    await asyncio.wait([commits])
    await database.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
