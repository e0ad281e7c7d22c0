"""What an installation has that is not Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

SOURCE = Path(__file__).parent.parent
PACKAGES = ("skyrack", "daemonkit", "controllerd", "networkd", "computed", "storaged")


def test_a_wheel_has_the_migrations_and_the_mark_of_types(tmp_path: Path) -> None:
    """Built from a copy, for setuptools leaves its traces beside what it builds."""
    for name in PACKAGES:
        shutil.copytree(SOURCE / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(SOURCE / name, tmp_path)
    words = ("-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", "dist", ".")
    subprocess.run([sys.executable, *words], cwd=tmp_path, check=True, timeout=240)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    wanted = {str(path.relative_to(SOURCE)) for path in SOURCE.glob("controllerd/store/migrations/*.sql")}
    assert wanted and wanted | {"skyrack/py.typed"} <= set(names)
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
