"""What a controller sends is checked again: nothing of it can leave its place in a ruleset or a configuration."""

from __future__ import annotations

import pytest

from daemonkit.errors import InvalidArgument
from networkd import wire

ZONES = ["fe80::1%eth0", "fe80::%x; flush ruleset", "fe80::%x\n}/64", "::1%a/128"]


@pytest.mark.parametrize("text", ZONES)
def test_an_address_has_no_zone(text: str) -> None:
    with pytest.raises(InvalidArgument):
        wire._cidr("remote_cidr", text)
    with pytest.raises(InvalidArgument):
        wire._ip("ip", text)
