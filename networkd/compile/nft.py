"""Tables to nft text: the whole in one transaction, or only what differs. Pure.

A port has its own chains and map elements, so the delta of one more port names nothing of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from networkd.spec.picture import Chain, NftSet, Table


def whole(tables: Iterable[Table]) -> str:
    """Replaces each table atomically, whether it exists or not."""
    lines: list[str] = []
    for table in tables:
        head = f"table {table.family} {table.name}"
        lines += [f"{head} {{}}", f"delete {head}", f"{head} {{"]
        lines += _blocks(table.sets, table.chains, with_elements=True)
        lines.append("}")
    return "\n".join(lines) + "\n"


def remove(tables: Iterable[Table]) -> str:
    return "".join(f"table {t.family} {t.name} {{}}\ndelete table {t.family} {t.name}\n" for t in tables)


def delta(old: Sequence[Table], new: Sequence[Table]) -> str:
    """From `old` in force to `new`; "" when nothing differs. A table whose frame changed is replaced whole."""
    before = {(t.family, t.name): t for t in old}
    after = {(t.family, t.name): t for t in new}
    text = remove(t for key, t in before.items() if key not in after)
    for key, table in after.items():
        held = before.get(key)
        if held is None or _frame_changed(held, table):
            text += whole([table])
        elif held != table:
            text += _difference(held, table)
    return text


def _frame_changed(old: Table, new: Table) -> bool:
    hooks = {n: c.hook for n, c in old.chains.items() if c.hook} != {n: c.hook for n, c in new.chains.items() if c.hook}
    return hooks or any(name in old.sets and old.sets[name].spec != s.spec for name, s in new.sets.items())


def _difference(old: Table, new: Table) -> str:
    where = f"{new.family} {new.name}"
    added_sets = {n: s for n, s in new.sets.items() if n not in old.sets}
    changed = {n: c for n, c in new.chains.items() if n in old.chains and old.chains[n] != c}
    added = {n: c for n, c in new.chains.items() if n not in old.chains}
    gone_chains = [n for n in old.chains if n not in new.chains]
    gone_sets = [n for n in old.sets if n not in new.sets]
    lines = []
    for name, kept in new.sets.items():
        lines += _elements("delete", where, name, _minus(old.sets.get(name), kept))
    lines += [f"flush chain {where} {name}" for name in (*changed, *gone_chains)]
    if added_sets or changed or added:
        bodies = {n: Chain(c.rules) for n, c in changed.items()}
        lines += [f"table {where} {{", *_blocks(added_sets, {**added, **bodies}, with_elements=False), "}"]
    for name, kept in new.sets.items():
        lines += _elements("add", where, name, _minus(kept, old.sets.get(name)))
    lines += [f"delete chain {where} {name}" for name in gone_chains]
    lines += [f"delete set {where} {name}" for name in gone_sets if not old.sets[name].is_map]
    lines += [f"delete map {where} {name}" for name in gone_sets if old.sets[name].is_map]
    return "\n".join(lines) + "\n"


def _minus(one: NftSet | None, other: NftSet | None) -> list[str]:
    """Elements of `one` that `other` has not, as text."""
    if one is None:
        return []
    there = other.elements if other is not None else {}
    return [_element(k, v) for k, v in one.elements.items() if there.get(k) != v]


def _element(key: str, value: str) -> str:
    return f"{key} : {value}" if value else key


def _elements(verb: str, where: str, name: str, elements: list[str]) -> list[str]:
    return [f"{verb} element {where} {name} {{ {', '.join(elements)} }}"] if elements else []


def _blocks(sets: dict[str, NftSet] | object, chains: dict[str, Chain] | object, *, with_elements: bool) -> list[str]:
    assert isinstance(sets, dict) and isinstance(chains, dict)
    lines = []
    for name, item in sets.items():
        lines += [f" {'map' if item.is_map else 'set'} {name} {{", f"  {item.spec}"]
        if with_elements and item.elements:
            lines.append(f"  elements = {{ {', '.join(_element(k, v) for k, v in item.elements.items())} }}")
        lines.append(" }")
    lines += [f" chain {name} {{\n }}" for name, chain in chains.items() if not chain.hook]
    for name, chain in chains.items():
        lines += [f" chain {name} {{", *([f"  {chain.hook}"] if chain.hook else [])]
        lines += [f"  {rule}" for rule in chain.rules]
        lines.append(" }")
    return lines
