"""Subnets in the store, and the addresses taken from them."""

from __future__ import annotations

from controllerd.domain.address import number, text_of
from controllerd.domain.page import Page, PageOf
from controllerd.domain.port import DHCP, FixedIp
from controllerd.domain.subnet import Subnet
from controllerd.store import network
from controllerd.store.database import Tx
from controllerd.store.table import Table

SUBNETS = Table(Subnet, "subnet", "subnet")


def visible(tx: Tx, project_id: str, everything: bool, name: str, network_id: str, page: Page) -> PageOf[Subnet]:
    """Of networks that the project sees."""
    networks = "SELECT id FROM network WHERE shared OR external OR project_id = ?"
    whose = "1 OR ?" if everything else f"network_id IN ({networks})"
    filters, values = "", []
    for column, value in (("name", name), ("network_id", network_id)):
        if value:
            filters += f" AND {column} = ?"
            values.append(value)
    return SUBNETS.page(tx, page, f"({whose}){filters}", project_id, *values)


def of_network(tx: Tx, network_id: str) -> list[Subnet]:
    """In order of creation: addresses are taken from the first that has some."""
    return SUBNETS.where(tx, "network_id = ? ORDER BY created_at, id", network_id)


def dhcp_addresses(tx: Tx, network_id: str) -> dict[str, str]:
    """Subnet -> the address that answers DHCP there."""
    sql = "SELECT a.subnet_id, a.ip FROM port p JOIN address a ON a.port_id = p.id WHERE p.network_id = ? AND p.purpose = ?"
    return {row["subnet_id"]: row["ip"] for row in tx.each(sql, network_id, DHCP)}


def used_by(tx: Tx, subnet_id: str) -> str:
    """What has an address of it, as `network.describe` says it; "" for nothing but DHCP."""
    sql = (
        "SELECT p.server_id, p.router_id, p.purpose, p.id FROM address a JOIN port p ON p.id = a.port_id"
        " WHERE a.subnet_id = ? AND p.purpose != ? ORDER BY p.server_id DESC, p.router_id DESC LIMIT 1"
    )
    row = tx.one(sql, subnet_id, DHCP)
    return "" if row is None else network.describe(row)


def delete_of_network(tx: Tx, network_id: str) -> None:
    """No address of them may be left."""
    tx.run("DELETE FROM subnet WHERE network_id = ?", network_id)


# ---------------------------------------------------------------- addresses


def owner_of(tx: Tx, subnet_id: str, ip: str) -> str:
    """The port that has the address, "" for none."""
    sql = "SELECT port_id FROM address WHERE subnet_id = ? AND ip_number = ?"
    return str(tx.value(sql, subnet_id, number(ip)) or "")


def take_address(tx: Tx, subnet_id: str, ip: str, port_id: str) -> FixedIp:
    sql = "INSERT INTO address (subnet_id, ip_number, ip, port_id) VALUES (?, ?, ?, ?)"
    tx.run(sql, subnet_id, number(ip), ip, port_id)
    return FixedIp(subnet_id, ip)


def lowest_free(tx: Tx, subnet: Subnet) -> str:
    """The lowest address of the pools that nobody has, "" when all are taken."""
    for low, high in (pool.bounds for pool in subnet.pools):
        high = min(high, _highest_taken(tx, subnet.id, low, high) + 1)
        if _taken(tx, subnet.id, low, high) == high - low + 1:
            continue
        while low < high:  # the lower half is full, or the lowest free one is in it
            middle = (low + high) // 2
            if _taken(tx, subnet.id, low, middle) == middle - low + 1:
                low = middle + 1
            else:
                high = middle
        return text_of(low)
    return ""


def _highest_taken(tx: Tx, subnet_id: str, low: int, high: int) -> int:
    """`low` - 1 when none is."""
    sql = "SELECT max(ip_number) FROM address WHERE subnet_id = ? AND ip_number BETWEEN ? AND ?"
    found = tx.value(sql, subnet_id, low, high)
    return low - 1 if found is None else int(found)


def _taken(tx: Tx, subnet_id: str, low: int, high: int) -> int:
    sql = "SELECT count(*) FROM address WHERE subnet_id = ? AND ip_number BETWEEN ? AND ?"
    return int(tx.value(sql, subnet_id, low, high))


def release_addresses(tx: Tx, port_id: str) -> None:
    tx.run("DELETE FROM address WHERE port_id = ?", port_id)
