"""An edge node with 50 ports of 10 rules each: one transaction for the whole, and one more port names nothing of the others."""

from __future__ import annotations

import re

from tests.networkd.objects import NET, device_of, group, port, port_id, rule, segment
from tests.networkd.rack import Rack, eventually
from tests.networkd.settings import PORTS, RULES


async def test_one_transaction_and_small_deltas(rack: Rack) -> None:
    host = await rack.host("h1", 1, start=False)
    await rack.controller.start()
    groups, ports = [], []
    for number in range(10, 10 + PORTS):
        group_id = f"{number:04d}dddd-0000"
        groups.append(group(group_id, *(rule("tcp", 1000 + n, 1000 + n) for n in range(RULES - 1))))
        ports.append(port(number, NET, group_id))
    await rack.controller.put("h1", segment(), *groups, *ports)
    heard = host.directory / "monitor"
    rack.keep(host.space.start("bash", "-c", f"exec stdbuf -oL nft monitor > {heard}"))
    host.start()
    await rack.controller.session("h1")
    for number in range(10, 10 + PORTS):
        await rack.controller.state("h1", f"port/{port_id(number)}")
    listed = await host.space.run("nft", "list", "table", "bridge", "sk_filter")
    assert len(re.findall(r"tcp dport 10\d\d accept", listed)) == PORTS * (RULES - 1)
    assert listed.count("chain pre_") == PORTS
    last = 10 + PORTS
    began_s = await rack.controller.put("h1", group("9999dddd-0000", rule("tcp", 22, 22)), port(last, NET, "9999dddd-0000"))
    await rack.controller.state("h1", f"port/{port_id(last)}")
    print(f"one more port: {(rack.controller.reported_s('h1', f'port/{port_id(last)}') - began_s) * 1000:.1f} ms")
    await rack.controller.put("h1", remove=(f"port/{port_id(last)}", "group/9999dddd-0000"))
    await rack.controller.state("h1", f"port/{port_id(last)}", 7)

    async def monitored() -> bool:
        return f"delete chain bridge sk_filter pre_{port_id(last).replace('-', '')}" in heard.read_text()

    assert await eventually(monitored)
    out = heard.read_text()
    transactions = [t.splitlines() for t in re.split(r"^# new generation.*$", out, flags=re.MULTILINE)]
    full = [t for t in transactions if any("sk_filter" in line for line in t)]
    assert sum(f"pre_{port_id(10).replace('-', '')}" in "\n".join(t) for t in full) == 1, "the whole is one transaction"
    added, removed = full[-2], full[-1]
    key, device = port_id(last).replace("-", ""), device_of(last)
    for line in (*added, *removed):
        ours = key in line or device in line or "9999dddd0000" in line or "__set" in line  # its anonymous sets
        assert not line.strip() or ours, line
    assert len([line for line in added if line.startswith("add rule")]) < 20
    assert "tapX" not in listed and device not in await host.space.run("nft", "list", "table", "bridge", "sk_filter")
