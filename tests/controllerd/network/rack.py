"""Rows that a rack has: nodes with agents, servers without a task behind them."""

from __future__ import annotations

import dataclasses
import typing

from controllerd.domain.node import AgentRecord, Node
from controllerd.domain.policy import Caller
from controllerd.domain.server import Server
from controllerd.store import server as server_store
from controllerd.store.database import Tx
from controllerd.store.node import NODES, put_agent


def add_node(tx: Tx, name: str, vtep: str = "", gateway: bool = False) -> Node:
    roles = ("edge", "gateway") if gateway else ("compute", "edge")
    node = NODES.insert(tx, Node(tx.new_id(), name, roles, True, "1", tx.now))
    set_agent(tx, node, vtep, gateway)
    return node


def set_agent(tx: Tx, node: Node, vtep: str, gateway: bool = False, lost: bool = False) -> None:
    inventory: dict[str, object] = {"network": {"vtep": vtep, "gateway": gateway}}
    put_agent(tx, AgentRecord(node.id, "networkd", not lost, tx.now, lost, "1", "boot", inventory))


def add_server(tx: Tx, caller: Caller, name: str) -> Server:
    zero = {str: "", int: 0, float: 0.0, bool: False}
    hints = typing.get_type_hints(Server)
    values = {f.name: zero.get(hints[f.name], ()) for f in dataclasses.fields(Server)}
    values |= {f.name: {} for f in dataclasses.fields(Server) if typing.get_origin(hints[f.name]) is dict}
    values |= {"id": tx.new_id(), "name": name, "project_id": caller.project_id, "user_id": caller.user_id, "state": "ACTIVE"}
    return server_store.insert(tx, Server(**{**values, "created_at": tx.now, "vcpus": 1}), b"")
