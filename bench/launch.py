"""What a launch costs over raw libvirt: from CreateServer accepted to the domain running, beside overlay + define + start of
the same domain by hand, turn and turn about, on the same compute node.

    ./dev bench launch [--json]      {ratio_p50, overhead_ms_p50, raw_ms_p50, n}
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from skyrack.client.cloud import Cloud
from skyrack.client.flavor import Flavor
from skyrack.client.image import Image
from skyrack.client.network import Network
from skyrack.client.server import ServerNetwork
from skyrack.sandbox.rack import Rack
from stage import median, operator, percentile, rack, show

ROUNDS = 15
NODE = "k1"
IMAGE = Path(__file__).parents[1] / "images/mini/mini.qcow2"
LIMIT_S = 120.0


class Raw:
    """The same domain by hand: a small program in the compute node that keeps its connection open, as computed does."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def open(cls, stage: Rack, server_id: str) -> Raw:
        """`server_id`: a server of the cloud whose domain is copied."""
        argv = stage.enter(NODE, sys.executable, str(Path(__file__).with_name("raw_launch.py")), server_id)
        pipe = asyncio.subprocess.PIPE
        raw = cls(await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe))
        await raw._answer()
        return raw

    async def launch_ms(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(b"launch\n")
        return float((await self._answer())["ms"])

    async def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), LIMIT_S)
        if not line:
            raise RuntimeError("the raw launcher ended")
        return dict(json.loads(line))

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


async def prepare(cloud: Cloud) -> tuple[Image, Flavor, Network]:
    image = await cloud.images.upload(await cloud.images.create("mini"), IMAGE)
    network = await cloud.networks.create("bench")
    await cloud.subnets.create("bench", network=network, cidr="192.168.77.0/24")
    return image, await cloud.flavors.find("m1.nano"), network


async def launch(cloud: Cloud, image: Image, flavor: Flavor, network: Network) -> tuple[str, float]:
    """(server id, milliseconds from accepted to running)."""
    server = await cloud.servers.create("bench", flavor=flavor, image=image, networks=[ServerNetwork(network_id=network.id)])
    server = await cloud.servers.wait(server, "ACTIVE", deadline_s=LIMIT_S)
    return server.id, float(next(step.since_accepted_ms for step in server.timeline if step.name == "running"))


async def measure(stage: Rack) -> tuple[list[float], list[float]]:
    """(ours, raw), in milliseconds."""
    ours, raws = [], []
    async with operator(stage) as cloud:
        made = await prepare(cloud)
        first, _warming = await launch(cloud, *made)  # brings the image into the node's cache
        raw = await Raw.open(stage, first)
        await cloud.servers.delete(first)
        await cloud.servers.wait_gone(first, deadline_s=LIMIT_S)
        for _ in range(ROUNDS):
            raws.append(await raw.launch_ms())
            server_id, took_ms = await launch(cloud, *made)
            ours.append(took_ms)
            await cloud.servers.delete(server_id)
            await cloud.servers.wait_gone(server_id, deadline_s=LIMIT_S)
        await raw.close()
    return ours, raws


async def main() -> None:
    async with rack("benchlaunch") as stage:
        ours, raws = await measure(stage)
    ratios = [a / b for a, b in zip(ours, raws, strict=True)]
    overheads = [a - b for a, b in zip(ours, raws, strict=True)]
    rows = [
        (name, *(percentile(values, p) for p in (0, 50, 90)))
        for name, values in (("ours, ms", ours), ("raw libvirt, ms", raws), ("overhead, ms", overheads))
    ]
    rows.append(("ratio", *(f"{percentile(ratios, p):.2f}" for p in (0, 50, 90))))
    result = {
        "ratio_p50": round(median(ratios), 3),
        "overhead_ms_p50": round(median(overheads), 1),
        "raw_ms_p50": round(median(raws), 1),
        "n": len(ours),
    }
    show(f"launch of one server, {len(ours)} times", ("", "least", "p50", "p90"), rows, result)


if __name__ == "__main__":
    asyncio.run(main())
