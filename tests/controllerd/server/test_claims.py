"""Claims under random lives of servers and nodes: never above what a node has, and exactly what its servers are."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

from controllerd.domain.flavor import Flavor
from controllerd.domain.image import Image
from controllerd.domain.policy import Caller
from controllerd.store import claim, quota
from daemonkit.errors import SkyrackError
from tests.controllerd.server.rig import Rig, ScriptedNode

VCPUS, MEMORY_MIB, DISK_GIB = 2, 2048, 20


async def check(rig: Rig) -> None:
    for candidate in await rig.database.read(claim.candidates):
        assert candidate.vcpus_claimed <= 4 * VCPUS
        assert candidate.memory_mib_claimed <= MEMORY_MIB
        assert candidate.disk_gib_claimed <= DISK_GIB
    unequal = await rig.rows(
        "SELECT s.id FROM server s LEFT JOIN claim c ON c.server_id = s.id AND c.node_id = s.node_id"
        " WHERE (s.node_id != '') != (c.server_id IS NOT NULL)"
        " AND NOT EXISTS (SELECT 1 FROM tombstone t WHERE t.object_id = s.id AND t.node_id = s.node_id)"
    )
    assert not unequal
    orphans = await rig.rows("SELECT server_id FROM claim WHERE server_id NOT IN (SELECT id FROM server)")
    assert not orphans
    for scripted in rig.nodes.values():  # what really runs is claimed, whether its server is still there or not
        held = await rig.rows(
            "SELECT server_id AS id FROM claim WHERE node_id = ?1 UNION"
            " SELECT object_id FROM tombstone WHERE node_id = ?1 AND memory_mib > 0", scripted.node.id,
        )  # fmt: skip
        assert scripted.guests.keys() <= {row["id"] for row in held}


def any_node(rig: Rig, rng: random.Random) -> ScriptedNode:
    return rng.choice(list(rig.nodes.values()))


async def create(rig: Rig, tenant: Caller, rng: random.Random, flavors: list[Flavor], image: Image) -> None:
    await rig.create(tenant, rng.choice(flavors), image)


async def delete(rig: Rig, tenant: Caller, rng: random.Random, *_: object) -> None:
    if servers := await rig.rows("SELECT id FROM server"):
        await rig.servers.delete(tenant, rng.choice(servers)["id"])


async def advance(rig: Rig, *_: object) -> None:
    await rig.advance()


async def obey(rig: Rig, _tenant: Caller, rng: random.Random, *_: object) -> None:
    scripted = any_node(rig, rng)
    if not scripted.away:
        await rig.obey(scripted)


async def lose(rig: Rig, _tenant: Caller, rng: random.Random, *_: object) -> None:
    await rig.lose(any_node(rig, rng))


async def find(rig: Rig, _tenant: Caller, rng: random.Random, *_: object) -> None:
    await rig.find_again(any_node(rig, rng))


async def rest(rig: Rig, *_: object) -> None:
    await rig.run()


ACTS = {"create": create, "delete": delete, "advance": advance, "obey": obey, "lose": lose, "find": find, "rest": rest}
LIKELY = ("create", "create", "create", "delete", "delete", "advance", "obey", "lose", "find", "rest")


@pytest.mark.parametrize("seed", range(6))
async def test_random_lives(rig: Rig, tenant: Caller, seed: int) -> None:
    rng = random.Random(seed)
    for number in range(3):
        await rig.add_node(f"k{number}", vcpus=VCPUS, memory_mib=MEMORY_MIB, disk_gib=DISK_GIB)
    flavors = [
        await rig.add_flavor(tenant, memory_mib=m, vcpus=v, disk_gib=d) for m, v, d in ((512, 1, 1), (768, 3, 9), (1024, 1, 5))
    ]
    image = await rig.add_image(tenant)
    await rig.add_network(tenant)
    await rig.database.write(
        lambda tx: [quota.set_limit(tx, tenant.project_id, r, -1) for r in ("servers", "vcpus", "memory_mib")]
    )
    for _ in range(60):
        with suppress(SkyrackError):
            await ACTS[rng.choice(LIKELY)](rig, tenant, rng, flavors, image)
        await check(rig)
    for scripted in rig.nodes.values():
        await rig.find_again(scripted)
    for row in await rig.rows("SELECT id FROM server"):
        await rig.servers.delete(tenant, row["id"])
    await rig.run()
    assert await rig.leftovers() == {}
    assert not any(n.guests for n in rig.nodes.values())
