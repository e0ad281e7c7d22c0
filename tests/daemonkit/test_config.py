from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from daemonkit.config import describe, load, option, parse, section
from daemonkit.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    memory_mib: int = option(512, "of each child")
    ratio: float = option(float("inf"), "over-commit")


@dataclass(frozen=True)
class Settings:
    node: str = option("", "name of this node")
    controllers: list[str] = option(["a:1", "b:2"], "where to dial\nin this order")
    tiers: tuple[str, ...] = option((), "of disks")
    data_dir: Path = option(Path("/var/lib/x"), "what it keeps")
    extra: list[Path] = option([], "more of it")
    interval_s: float = option(1.5, "between passes")
    debug: bool = option(False, "talk more")
    mtu: int | None = option(None, "of the underlay")
    labels: dict[str, str] = option({"a b": 'q"\\ä\x7f'}, "free")
    limits: Limits = section(Limits)


@dataclass(frozen=True)
class Strict(Settings):
    def __post_init__(self) -> None:
        if not self.node:
            raise ConfigError("'node' must be given")


def test_described_defaults_load_as_defaults(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(describe(Settings))
    assert load(Settings, path) == Settings()
    assert "# in this order\n" in path.read_text() and "# mtu =\n" in path.read_text()
    assert describe(Strict) == describe(Settings)


def test_values_are_read_as_their_kind() -> None:
    raw = {
        "node": "n",
        "data_dir": "/d",
        "extra": ["/e"],
        "interval_s": 2,
        "tiers": ["a"],
        "mtu": 9000,
        "limits": {"memory_mib": 1},
    }
    read = parse(Settings, raw)
    assert (read.data_dir, read.extra, read.interval_s, read.tiers, read.mtu) == (Path("/d"), [Path("/e")], 2.0, ("a",), 9000)
    assert read.limits.memory_mib == 1 and isinstance(read.interval_s, float)
    Settings().controllers.append("c")
    assert Settings().controllers == ["a:1", "b:2"]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"nod": "x"}, "unknown key 'nod'"),
        ({"limits": {"x": 1}}, "unknown key 'limits.x'"),
        ({"node": 5}, "'node' must be of type str"),
        ({"debug": 1}, "'debug' must be of type bool"),
        ({"interval_s": True}, "'interval_s' must be of type float"),
        ({"controllers": ["a", 5]}, "'controllers' must be of type list"),
        ({"controllers": "a"}, "'controllers'"),
        ({"limits": 5}, "'limits' must be a table"),
        ({"limits": {"memory_mib": "1"}}, "'limits.memory_mib' must be of type int"),
        ({"mtu": "x"}, "'mtu'"),
    ],
)
def test_mistakes_are_named(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=r"^the file: ") as caught:
        parse(Settings, raw, "the file")
    assert said in caught.value.message


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"\xff = 1")
    for path in (tmp_path / "none.toml", tmp_path, bad):
        with pytest.raises(ConfigError, match=str(path)):
            load(Settings, path)
    with pytest.raises(ConfigError, match="x: 'node' must be given"):
        parse(Strict, {}, "x")
