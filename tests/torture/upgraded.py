"""controllerd as its next two releases might be.

The next one (as a program: this module) adds a column and a table, which the present one can live with, and writes both. The
one after (`tests.torture.incompatible`) also renames the table, which no older one can live with.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from controllerd.store import migration
from controllerd.store.migration import Migration, newest, parse

PRESENT = newest(migration.migrations())
WIDER = parse(
    PRESENT + 1,
    "wider",
    f"""-- readable from schema {PRESENT}
ALTER TABLE keypair ADD COLUMN comment TEXT NOT NULL DEFAULT 'of the past';
CREATE TABLE keypair_note (
  keypair_id TEXT PRIMARY KEY REFERENCES keypair (id) ON DELETE CASCADE, note TEXT NOT NULL
) WITHOUT ROWID;
""",
)
RENAMED = parse(PRESENT + 2, "renamed", "ALTER TABLE keypair_note RENAME TO keypair_remark")


def run(steps: Sequence[Migration], notes: str) -> int:
    """`notes`: the table for them."""
    known = [*migration.migrations(), *steps]
    migration.migrations = lambda: known
    # Who imports it from here on finds these.
    from controllerd.daemon import main
    from controllerd.domain.keypair import Keypair
    from controllerd.store.database import Tx
    from controllerd.store.keypair import KEYPAIRS

    insert = KEYPAIRS.insert

    def insert_all(tx: Tx, keypair: Keypair) -> Keypair:
        insert(tx, keypair)
        tx.run("UPDATE keypair SET comment = 'of the future' WHERE id = ?", keypair.id)
        tx.run(f"INSERT INTO {notes} (keypair_id, note) VALUES (?, ?)", keypair.id, keypair.name)
        return keypair

    KEYPAIRS.insert = insert_all  # type: ignore[method-assign]
    return main()


if __name__ == "__main__":
    sys.exit(run([WIDER], "keypair_note"))
