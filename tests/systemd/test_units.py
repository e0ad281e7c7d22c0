"""systemd itself finds nothing wrong with our unit files, and they say what the daemons rely on."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = sorted(path.name for path in (ROOT / "systemd").glob("*.service"))


class _Repeated(dict[str, str]):
    """systemd lets a key come twice; configparser takes the last."""


def read(name: str) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(strict=False, interpolation=None, dict_type=_Repeated)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "systemd" / name)
    return unit


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root with our units and every program they name."""
    shutil.copytree(ROOT / "systemd", tmp_path / "etc/systemd/system", dirs_exist_ok=True)
    for path in ["/usr/bin/etcd", *(read(name)["Service"]["ExecStart"].split()[0] for name in SERVICES)]:
        program = tmp_path / path.lstrip("/")
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    vendor = Path("/usr/lib/systemd/system")
    shutil.copytree(vendor, tmp_path / vendor.relative_to("/"), symlinks=True)
    return tmp_path


def test_systemd_accepts_them(tree: Path) -> None:
    argv = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", f"--root={tree}", "skyrack.target", *SERVICES]
    checked = subprocess.run([*argv, "etcd.service"], capture_output=True, text=True, timeout=60)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_systemd_would_object(tree: Path) -> None:
    """The check above sees mistakes at all."""
    unit, dropin = tree / "etc/systemd/system/skyrack-computed.service", tree / "etc/systemd/system/etcd.service.d/skyrack.conf"
    unit.write_text(unit.read_text().replace("Type=notify", "Type=notfy"))
    dropin.write_text(dropin.read_text().replace("LoadCredential=server.pem:", "LoadCredentail="))
    argv = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", f"--root={tree}", unit.name, "etcd.service"]
    checked = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert "notfy" in checked.stderr and "LoadCredentail" in checked.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_promises_of_every_daemon(name: str) -> None:
    unit = read(name)
    service = unit["Service"]
    assert service["Type"] == "notify" and int(service["WatchdogSec"]) >= 10
    assert (service["Restart"], unit["Install"]["WantedBy"]) == ("on-failure", "skyrack.target")
    assert service["NoNewPrivileges"] == "yes" and int(service["LimitNOFILE"]) >= 16384
    assert "CapabilityBoundingSet" in service


@pytest.mark.parametrize("name", ["skyrack-networkd.service", "skyrack-storaged.service"])
def test_children_outlive_a_restart(name: str) -> None:
    assert read(name)["Service"]["KillMode"] == "process"


def test_networkd_shares_the_mounts_of_its_node() -> None:
    """Named network namespaces are mounts: with a mount namespace of its own the daemon would lose them at each restart."""
    private = {"ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "ProtectKernelTunables", "ProtectControlGroups"}
    private |= {"ProtectKernelLogs", "ProtectKernelModules", "ReadWritePaths", "StateDirectory", "ProtectProc", "PrivateMounts"}
    assert private & set(read("skyrack-networkd.service")["Service"]) <= {"StateDirectory"}


def test_every_daemon_has_a_unit() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {name for name in scripts if name != "skyrack"} == {name.removesuffix(".service") for name in SERVICES}
