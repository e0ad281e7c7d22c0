"""docs/testing.md: its examples run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "testing.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
HANG_S = 120.0


def run(*command: str, cwd: Path) -> None:
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_with_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_example.py").write_text(EXAMPLES[0])
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_example.py", cwd=tmp_path)


def test_the_example_without_an_event_loop(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(EXAMPLES[1])
    run("example.py", cwd=tmp_path)
