"""Transactions that follow others in the same commit."""

from __future__ import annotations

from typing import Any

import pytest

from controllerd.store.database import Database, Tx

TABLE = "CREATE TABLE t (id TEXT PRIMARY KEY)"


class Told:
    def __init__(self) -> None:
        self.results: list[Any] = []
        self.errors: list[BaseException] = []

    def done(self) -> bool:
        return False

    def set_result(self, result: Any, /) -> None:
        self.results.append(result)

    def set_exception(self, exception: BaseException, /) -> None:
        self.errors.append(exception)


def put(tx: Tx, key: str) -> str:
    tx.run("INSERT INTO t VALUES (?)", key)
    tx.touch(key)
    return key


async def rows(database: Database) -> list[str]:
    return await database.read(lambda tx: [row["id"] for row in tx.each("SELECT id FROM t ORDER BY id")])


async def test_what_follows_is_in_the_same_commit_and_told_first(database: Database) -> None:
    await database.write(lambda tx: tx.run(TABLE))
    told, order, seq = Told(), [], database.seq
    database.subscribe(lambda touched: order.append((sorted(touched), list(told.results))))
    database.follow(lambda touched: [(lambda tx, k=key: put(tx, k + "+"), told) for key in sorted(touched)])
    assert await database.write(lambda tx: put(tx, "a")) == "a"
    assert database.seq == seq + 1
    assert order == [(["a", "a+"], ["a+"])]  # and nothing follows what follows
    assert await rows(database) == ["a", "a+"]


async def test_what_follows_fails_alone(database: Database) -> None:
    await database.write(lambda tx: tx.run(TABLE))
    told = Told()

    def fail(tx: Tx) -> None:
        put(tx, "never")
        raise ValueError("no")

    database.follow(lambda _touched: [(fail, told)])
    assert await database.write(lambda tx: put(tx, "a")) == "a"
    assert await rows(database) == ["a"] and [str(e) for e in told.errors] == ["no"]


async def test_nothing_follows_what_was_undone(database: Database) -> None:
    await database.write(lambda tx: tx.run(TABLE))
    told = Told()
    database.follow(lambda _touched: [(lambda tx: put(tx, "after"), told)])

    def undone(tx: Tx) -> None:
        put(tx, "a")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await database.write(undone)
    assert await rows(database) == [] and not told.results
