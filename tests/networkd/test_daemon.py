"""The command: configuration printed, mistakes refused, the fake driver on a machine without rights."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from daemonkit import config
from daemonkit.errors import ConfigError
from networkd.daemon import Config
from tests.networkd.objects import NET, external, port, port_id, router, segment
from tests.networkd.rack import Rack


def networkd(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "networkd.daemon", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=Path(__file__).parents[2])


def test_prints_its_configuration() -> None:
    printed = networkd("--print-config")
    assert printed.returncode == 0
    assert config.parse(Config, tomllib.loads(printed.stdout)) == Config()


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "networkd.toml"
    file.write_text('vtepp = "10.0.0.1"\n')
    refused = networkd("--config", str(file))
    assert refused.returncode == 1 and "unknown key 'vtepp'" in refused.stderr and "Traceback" not in refused.stderr
    file.write_text(f'data_dir = "{tmp_path}/data"\n')
    refused = networkd("--config", str(file))
    assert refused.returncode == 1 and "node and vtep must be set" in refused.stderr


@pytest.mark.parametrize(
    "raw", [{"driver": "magic"}, {"vtep": "fd00::1"}, {"underlay_mtu": 100}, {"gateway": {"enabled": True}}]
)
def test_values_are_checked(raw: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        config.parse(Config, raw)


async def test_the_fake_driver_ships(rack: Rack) -> None:
    host = await rack.host("g1", 3, gateway=True, start=False)
    await rack.controller.start()
    host.start(driver="fake")
    await rack.controller.session("g1")
    await rack.controller.put("g1", segment(), external(), port(11, NET), router())
    await rack.controller.state("g1", f"port/{port_id(11)}")
    await rack.controller.state("g1", "router/4444")
    assert "skb" not in await host.space.run("ip", "link")


async def test_a_second_networkd_on_the_same_data_refuses(rack: Rack) -> None:
    host = await rack.host("h1", 1)
    argv = host.space.argv(sys.executable, "-m", "networkd.daemon", "--config", str(host.directory / "networkd.toml"))
    argv.insert(1, f"--wd={Path(__file__).parents[2]}")
    second = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1 and "in use by another process" in second.stderr
