"""Pings of a floating IP while something happens: who loses none has not noticed."""

from __future__ import annotations

import re
import subprocess
from typing import Self

from skyrack.client.floating_ip import FloatingIp
from tests.e2e.running_rack import RunningRack


class Ping:
    """Five a second, from the client on the internet, while the block runs."""

    def __init__(self, rack: RunningRack, address: FloatingIp) -> None:
        self._argv = rack.enter("internet", "ping", "-i", "0.2", "-W", "2", str(address.ip))
        self.answered: list[int] = []
        """Sequence numbers."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(2)
        told, _error = self._process.communicate(timeout=20)
        self.answered = [int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", told)]

    @property
    def whole(self) -> bool:
        """None was lost; the last ones may still have been under way."""
        return len(self.answered) > 3 and self.answered == list(range(1, len(self.answered) + 1))
