"""Backup, restore and transfer with three controllers, on real processes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
HANG_S = 280


def test_three_controllers_come_back_from_a_backup_made_under_load() -> None:
    argv = [sys.executable, "-m", "tests.torture.restoring", "--seed", "7"]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr
    told = re.search(r"(\d+) acknowledged before the backup, (\d+) after the restore", done.stderr)
    assert told and int(told[1]) > 5 and int(told[2]) > 5, done.stderr
