"""Network namespaces by name, and who is in them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from skyrack.sandbox.launch import run

DIRECTORY = Path("/run/netns")

# Addresses are usable at once (nobody else could hold them), and the loopback is up.
_PREPARE = """
for scope in all default; do
  echo 0 > /proc/sys/net/ipv6/conf/$scope/accept_dad
  echo 0 > /proc/sys/net/ipv6/conf/$scope/accept_ra
done
exec ip link set lo up
"""


def names(prefix: str = "") -> set[str]:
    return {entry.name for entry in DIRECTORY.iterdir() if entry.name.startswith(prefix)} if DIRECTORY.is_dir() else set()


async def ensure(name: str) -> None:
    if name not in names():
        await run("ip", "netns", "add", name)
    await run(*enter(name, "sh", "-ec", _PREPARE))


async def delete(name: str) -> None:
    """Its processes must be gone, else the kernel keeps it alive without a name."""
    if name in names():
        await run("ip", "netns", "delete", name)


def enter(name: str, *command: str) -> list[str]:
    """argv that runs `command` in the namespace and nothing else changed. (`ip netns exec` would hide /sys/fs/cgroup.)"""
    return ["nsenter", f"--net={DIRECTORY / name}", "--", *command]


def pids(name: str) -> set[int]:
    """Processes whose main thread is in the namespace, as the machine numbers them."""
    try:
        wanted = (DIRECTORY / name).stat()
    except FileNotFoundError:
        return set()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                its = (entry / "ns/net").stat()
                if (its.st_ino, its.st_dev) == (wanted.st_ino, wanted.st_dev):
                    found.add(int(entry.name))
    return found
