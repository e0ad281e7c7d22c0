"""TAPs outlive networkd, and must do so only once it can know them again."""

from __future__ import annotations

import subprocess
import sys

MAKE = """
import os, signal
from networkd.drivers.kernel import add_tap

def killed():
    assert "tap-killed" in os.listdir("/sys/class/net")
    os.kill(os.getpid(), signal.SIGKILL)

child = os.fork()
if not child:
    add_tap("tap-killed", killed)
assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
add_tap("tap-made", lambda: None)
print(*sorted(os.listdir("/sys/class/net")))
"""


def test_killed_before_it_is_marked_none_stays() -> None:
    mount = 'mount -t sysfs none /sys && exec "$1" -c "$2"'
    argv = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", mount, "sh", sys.executable, MAKE]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert [name for name in done.stdout.split() if name.startswith("tap")] == ["tap-made"]
