"""Whose images a list gives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from controllerd.agents.blob import GrpcBlobStore
from controllerd.app.cloud import Cloud, Once
from controllerd.app.image import Images
from controllerd.domain.page import Page
from controllerd.domain.policy import Caller
from daemonkit.errors import Forbidden
from daemonkit.tls import TlsFiles


async def test_images_of_the_project_and_of_all(
    cloud: Cloud, admin: Caller, caller: Callable[..., Awaitable[Caller]], tmp_path: Path
) -> None:
    alpha, beta = await caller("alpha"), await caller("beta")
    images = Images(cloud, GrpcBlobStore(TlsFiles(tmp_path)))
    for name, owner, public in (("mini", admin, True), ("own", admin, False), ("a", alpha, False), ("b", beta, False)):
        await images.create(owner, name, "raw", public, 0, 0, {}, Once("", "", ""))

    async def seen(who: Caller, all_projects: bool = False) -> list[str]:
        return [image.name for image in (await images.list(who, "", Page(), all_projects)).items]

    assert sorted(await seen(admin)) == ["mini", "own"]
    assert sorted(await seen(alpha)) == ["a", "mini"]
    assert sorted(await seen(admin, all_projects=True)) == ["a", "b", "mini", "own"]
    with pytest.raises(Forbidden, match="all_projects"):
        await seen(alpha, all_projects=True)
