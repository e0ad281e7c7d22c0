"""Addresses: the lowest free one, found by halving, is the one that counting would find."""

from __future__ import annotations

import random

import pytest

from controllerd.domain import address
from controllerd.domain.address import AddressPool
from controllerd.domain.subnet import Subnet
from controllerd.store import subnet as store
from controllerd.store.database import Database, Tx
from daemonkit.errors import InvalidArgument


async def test_the_lowest_free_address_is_found(database: Database) -> None:
    rng = random.Random(7)
    pools = (AddressPool("10.0.0.2", "10.0.0.20"), AddressPool("10.0.0.30", "10.0.0.45"))
    subnet = Subnet("s", "", "p", "n", "10.0.0.0/24", "", False, pools, (), (), 0.0)
    pooled = [ip for pool in pools for ip in range(pool.bounds[0], pool.bounds[1] + 1)]
    first = address.number("10.0.0.0")

    def take(tx: Tx) -> None:
        tx.run("INSERT INTO network VALUES ('n', 'n', 'p', 0, 0, 1450, 1, 0)")
        store.SUBNETS.insert(tx, subnet)
        for _ in range(300):
            tx.run("DELETE FROM address")
            taken = {first + n for n in range(256) if rng.random() < rng.choice((0.1, 0.9, 0.99, 1.0))}
            for ip in sorted(taken):
                store.take_address(tx, "s", address.text_of(ip), "port")
            expected = next((address.text_of(ip) for ip in pooled if ip not in taken), "")
            assert store.lowest_free(tx, subnet) == expected

    await database.write(take)


def test_macs() -> None:
    assert address.mac("mac", "FA-16-3E-00-00-01") == "fa:16:3e:00:00:01"
    for bad in ("", "fa:16:3e", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "fa:16:3e:00:00:0g"):
        with pytest.raises(InvalidArgument):
            address.mac("mac", bad)
    assert address.mac("mac", address.random_mac(random.Random(1))).startswith("fa:16:3e:")


def test_overlaps() -> None:
    others = ("10.0.0.0/16", "192.168.0.0/24")
    assert address.overlapping("10.0.5.0/24", others) == "10.0.0.0/16"
    assert address.overlapping("0.0.0.0/0", others[1:]) == "192.168.0.0/24"
    assert address.overlapping("10.1.0.0/24", others) == ""
