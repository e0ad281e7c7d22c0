"""Writes docs/configuration.md from what the daemons say: `.venv/bin/python docs/make_configuration.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("configuration.md")
DAEMONS = {
    "controllerd": "On controllers.",
    "networkd": "On compute and network nodes.",
    "computed": "On compute nodes.",
    "storaged": "On storage nodes.",
}
HEAD = """# Configuration

Every option of every daemon with its default. Each daemon reads one TOML file, `/etc/skyrack/DAEMON.toml` (`--config FILE`
names another), once, when it starts. Unknown keys, wrong types and values that cannot go together are refused with the file
and the key.

Made by `docs/make_configuration.py` from what the daemons print with `--print-config`, which is also the way to begin a file.
"""


def page() -> str:
    return HEAD + "".join(f"\n## {name}\n\n{where}\n\n```toml\n{options(name)}```\n" for name, where in DAEMONS.items())


def options(daemon: str) -> str:
    program = Path(sys.executable).with_name(f"skyrack-{daemon}")
    return subprocess.run([program, "--print-config"], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    PAGE.write_text(page())
