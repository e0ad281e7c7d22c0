"""Named namespaces on a host whose /run is a plain directory: it is mounted on itself once, however many come and go."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MAKE = """
from networkd.drivers import netns
for number in range(6):
    netns.create(f"sk-{number}", (), lambda: None)
    netns.delete(f"sk-{number}")
print(sum(line.split()[4] == "/run/netns" for line in open("/proc/self/mountinfo")))
"""


def test_the_directory_is_mounted_once(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    script = 'mount --bind "$1" /run && exec "$2" -c "$3"'
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(tmp_path / "run")]
    done = subprocess.run([*argv, sys.executable, MAKE], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) == 1
