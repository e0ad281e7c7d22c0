"""Flavors in the store."""

from __future__ import annotations

from controllerd.domain.flavor import Flavor
from controllerd.domain.page import Page, PageOf
from controllerd.store.database import Tx
from controllerd.store.table import Table, like_name

FLAVORS = Table(Flavor, "flavor", "flavor")


def visible(tx: Tx, project_id: str, name: str, page: Page) -> PageOf[Flavor]:
    """Public ones and the project's own."""
    condition, values = like_name(name)
    return FLAVORS.page(tx, page, f"project_id IN ('', ?) AND {condition}", project_id, *values)


def name_taken(tx: Tx, project_id: str, name: str) -> bool:
    return bool(tx.value("SELECT 1 FROM flavor WHERE project_id = ? AND name = ?", project_id, name))
