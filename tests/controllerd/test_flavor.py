"""Flavors through the app room: the exemplar noun."""

from __future__ import annotations

import pytest

from controllerd.app.cloud import Cloud, Once
from controllerd.app.flavor import Flavors
from controllerd.domain.page import Page
from controllerd.domain.policy import Caller
from daemonkit.errors import AlreadyExists, Forbidden, InvalidArgument, NotFound, QuotaExceeded

ANEW = Once("", "CreateFlavorRequest", "")


async def test_a_member_makes_its_own_and_an_admin_public_ones(cloud: Cloud, admin: Caller, member: Caller, caller) -> None:
    flavors = Flavors(cloud)
    public = await flavors.create(admin, "m1.tiny", 1, 512, 1, "", True, ANEW)
    own = await flavors.create(member, "mine", 2, 1024, 5, "", False, ANEW)
    assert {f.name for f in (await flavors.list(member, "", Page())).items} == {"m1.tiny", "mine"}
    stranger = await caller("beta")
    assert [f.name for f in (await flavors.list(stranger, "", Page())).items] == ["m1.tiny"]
    with pytest.raises(NotFound):
        await flavors.get(stranger, own.id)
    with pytest.raises(NotFound):
        await flavors.delete(stranger, own.id)
    with pytest.raises(Forbidden):
        await flavors.update(member, public.id, vcpus=8)
    with pytest.raises(Forbidden):
        await flavors.create(member, "p", 1, 512, 1, "", True, ANEW)


async def test_bad_input_names_the_field_and_changes_nothing(cloud: Cloud, member: Caller) -> None:
    flavors = Flavors(cloud)
    cases = (
        ("x\n", 1, 512, 1, "name"), ("x", 0, 512, 1, "vcpus"), ("x", 1, 1, 1, "memory_mib"), ("x", 1, 512, 0, "disk_gib"),
    )  # fmt: skip
    for name, vcpus, memory, disk, field in cases:
        with pytest.raises(InvalidArgument) as refused:
            await flavors.create(member, name, vcpus, memory, disk, "", False, ANEW)
        assert refused.value.field == field
    assert not (await flavors.list(member, "", Page())).items


async def test_a_retry_with_the_key_makes_one(cloud: Cloud, member: Caller) -> None:
    flavors = Flavors(cloud)
    once = Once("k1", "CreateFlavorRequest", "f1")
    first = await flavors.create(member, "a", 1, 512, 1, "", False, once)
    assert await flavors.create(member, "a", 1, 512, 1, "", False, once) == first
    with pytest.raises(InvalidArgument):
        await flavors.create(member, "b", 1, 512, 1, "", False, Once("k1", "CreateFlavorRequest", "f2"))
    with pytest.raises(AlreadyExists):
        await flavors.create(member, "a", 1, 512, 1, "", False, ANEW)


async def test_pages_and_quota(cloud: Cloud, member: Caller) -> None:
    flavors = Flavors(cloud)
    for number in range(20):
        await flavors.create(member, f"f{number}", 1, 512, 1, "", False, ANEW)
    with pytest.raises(QuotaExceeded):
        await flavors.create(member, "one too many", 1, 512, 1, "", False, ANEW)
    seen, token = [], ""
    while True:
        page = await flavors.list(member, "", Page.parse(7, token))
        seen += [f.name for f in page.items]
        token = page.next_token
        if not token:
            break
    assert sorted(seen) == sorted(f"f{n}" for n in range(20))
