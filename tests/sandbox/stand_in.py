"""Units that take the daemons' place: they are quick, and they show what the box does to a process."""

from __future__ import annotations

from collections.abc import Sequence

from skyrack.sandbox.layout import API_PORT, Node
from skyrack.sandbox.unit import Unit

PYTHON = ("/usr/bin/python3", "-I", "-S", "-c")

_ECHO = f"""
import os, socket
with socket.create_server(("0.0.0.0", {API_PORT})) as server:
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    while True:
        client, _ = server.accept()
        with client:
            client.sendall(b"echo " + client.recv(100))
"""

_NOTIFY = """
import os, signal, socket
to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
to.sendto(b"READY=1\\nSTATUS=serves", os.environ["NOTIFY_SOCKET"])
signal.pause()
"""

ECHO = Unit("echo", (*PYTHON, _ECHO), notify=True)
NOTIFIER = Unit("notifier", (*PYTHON, _NOTIFY), notify=True)
# A main process with a child that must outlive it, like dnsmasq under networkd.
PARENT = Unit("parent", ("sh", "-c", "sleep 54321 & exec sleep 12345"))
FAILING = Unit("failing", ("sh", "-c", "echo no luck; exit 3"))
ENDING = Unit("ending", ("true",))
STUBBORN = Unit("stubborn", ("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"))
WAITING = Unit("waiting", ("sleep", "1000"), needs="/etc/skyrack/go")


def units(node: Node, _controllers: Sequence[Node]) -> list[Unit]:
    """For a whole rack: something that listens on the controller, something that sleeps elsewhere."""
    return [ECHO] if node.kind.letter == "c" else [PARENT]
