"""The controller without its outer skin: every room built and wired, no socket, no file of TLS. Decides nothing.

`daemon` puts it behind gRPC; a simulation, or a cloud in one process, uses it as it is.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from controllerd.agents.authority import Authority
from controllerd.agents.blob import BlobStore
from controllerd.agents.desired.storage import compile_storage
from controllerd.agents.intake import Intake
from controllerd.agents.observed import storage as observed_storage
from controllerd.agents.session import Sessions, SessionSettings
from controllerd.app.cloud import Cloud
from controllerd.app.flavor import Flavors
from controllerd.app.history import History
from controllerd.app.identity import Identity
from controllerd.app.image import Images
from controllerd.app.keypair import Keypairs
from controllerd.app.login import Login, Passwords
from controllerd.app.node import Nodes
from controllerd.app.quota import Quotas
from controllerd.app.security_group import SecurityGroups, ensure_default
from controllerd.app.volume import Volumes
from controllerd.config import ControllerConfig
from controllerd.leadership.commit_log import CommitLog
from controllerd.store import image, node
from controllerd.store.database import Database, Tx
from controllerd.tasks.engine import TaskEngine
from controllerd.tasks.volume_attach import VOLUME_ATTACH, VOLUME_DETACH
from controllerd.tasks.volume_create import VOLUME_CREATE, VOLUME_DELETE
from daemonkit.runtime import Runtime

OPERATIONS = {o.kind: o for o in (VOLUME_CREATE, VOLUME_DELETE, VOLUME_ATTACH, VOLUME_DETACH)}


class Controller:
    def __init__(
        self, config: ControllerConfig, state: Path, commit_log: CommitLog, blobs: BlobStore, runtime: Runtime
    ) -> None:
        """`state`: the database file; its directory is this process's alone."""
        self.database = Database(state, commit_log, runtime)
        self.cloud = Cloud(self.database, runtime)
        self.authority = Authority(config.data_dir / "ca", runtime)
        self._lay_agents(config, runtime)
        self.tasks = TaskEngine(self.database, OPERATIONS, runtime)
        self._lay_verbs(config, blobs)

    def _lay_agents(self, config: ControllerConfig, runtime: Runtime) -> None:
        settings = SessionSettings(
            (config.advertise_agents or config.agents_listen,),
            config.agents.heartbeat_interval_s,
            config.agents.silence_max_s,
        )
        compilers = {"storaged": compile_storage}
        intake = Intake({**observed_storage.TAKERS}, lambda tx, node, telemetry: 0)
        self.sessions = Sessions(self.database, compilers, intake, settings, runtime)

    def _lay_verbs(self, config: ControllerConfig, blobs: BlobStore) -> None:
        cloud = self.cloud
        self.passwords = Passwords(cloud)
        self.login = Login(cloud, self.passwords)
        self.identity = Identity(cloud, self.passwords, ensure_default)
        api, controllers = config.advertise_api or config.api_listen, config.advertise_agents or config.agents_listen
        self.nodes = Nodes(cloud, self.authority, [api], [controllers])
        self.quotas = Quotas(cloud)
        self.history = History(cloud)
        self.flavors = Flavors(cloud)
        self.keypairs = Keypairs(cloud)
        self.images = Images(cloud, blobs)
        self.volumes = Volumes(cloud)
        self.security_groups = SecurityGroups(cloud)

    async def open(self) -> None:
        """Errors: ConfigError."""
        await self.database.open()

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.database.run())
            await self.database.write(_after_restart)
            self.database.subscribe(self.sessions.notice)
            group.create_task(self.tasks.run())

    async def close(self) -> None:
        self.passwords.close()
        await self.database.close()


def _after_restart(tx: Tx) -> None:
    """What ended with the process before: sessions, uploads."""
    node.all_disconnected(tx)
    image.end_uploads(tx)
