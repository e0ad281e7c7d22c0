"""The controller without its outer skin: every room built and wired, no socket, no file of TLS. Decides nothing.

`daemon` puts it behind gRPC; a simulation, or a cloud in one process, uses it as it is.
"""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from pathlib import Path

from controllerd import certificate
from controllerd.agents import telemetry
from controllerd.agents.authority import Authority
from controllerd.agents.blob import BlobStore
from controllerd.agents.console import ConsoleLogs
from controllerd.agents.desired.compute import compile_compute
from controllerd.agents.desired.network import compile_network
from controllerd.agents.desired.storage import compile_storage
from controllerd.agents.intake import Intake
from controllerd.agents.observed import port as observed_port
from controllerd.agents.observed import router as observed_router
from controllerd.agents.observed import server as observed_server
from controllerd.agents.observed import storage as observed_storage
from controllerd.agents.session import Sessions, SessionSettings
from controllerd.app.cloud import Cloud
from controllerd.app.cluster import Cluster, Membership
from controllerd.app.flavor import Flavors
from controllerd.app.floating_ip import FloatingIps
from controllerd.app.history import History
from controllerd.app.identity import Identity
from controllerd.app.image import Images
from controllerd.app.keypair import Keypairs
from controllerd.app.login import Login, Passwords
from controllerd.app.network import Networks
from controllerd.app.node import Nodes
from controllerd.app.port import Ports, release_ports
from controllerd.app.quota import Quotas
from controllerd.app.router import Routers
from controllerd.app.security_group import SecurityGroups, ensure_default
from controllerd.app.server import Servers
from controllerd.app.subnet import Subnets
from controllerd.app.volume import Volumes, detach_all
from controllerd.config import ControllerConfig
from controllerd.domain.placement import Ratios
from controllerd.leadership.commit_log import CommitLog
from controllerd.leadership.member import Member, heirs
from controllerd.reconcilers.expiry import Expiry
from controllerd.reconcilers.lost_node import LostNodes
from controllerd.reconcilers.orphan_claim import OrphanClaims
from controllerd.reconcilers.recovery import Recovery
from controllerd.reconcilers.router_placement import RouterPlacement
from controllerd.reconcilers.stuck_state import StuckStates
from controllerd.reconcilers.verify import Verify
from controllerd.store import image, node
from controllerd.store.database import Database, Tx
from controllerd.store.migration import migrations
from controllerd.tasks.engine import TaskEngine
from controllerd.tasks.operation import Operation
from controllerd.tasks.server_create import server_create
from controllerd.tasks.server_delete import TakeBack, server_delete
from controllerd.tasks.server_power import REBOOT, START, STOP
from controllerd.tasks.volume_attach import VOLUME_ATTACH, VOLUME_DETACH
from controllerd.tasks.volume_create import VOLUME_CREATE, VOLUME_DELETE
from daemonkit.runtime import Runtime


def operations(config: ControllerConfig) -> dict[str, Operation]:
    """Every durable operation, by kind."""
    ratios = Ratios(config.scheduler.vcpu_ratio, config.scheduler.memory_ratio, config.scheduler.disk_ratio)
    take_back = TakeBack(ports=release_ports, volumes=detach_all)
    servers = (server_create(ratios, take_back), server_delete(take_back), START, STOP, REBOOT)
    volumes = (VOLUME_CREATE, VOLUME_DELETE, VOLUME_ATTACH, VOLUME_DETACH)
    return {o.kind: o for o in (*servers, *volumes)}


def described(config: ControllerConfig) -> Member:
    """This controller, as others shall know it."""
    api, agents = config.advertise_api or config.api_listen, config.advertise_agents or config.agents_listen
    return Member(config.node, api, agents, version("skyrack"), migrations()[-1].number)


class Controller:
    def __init__(
        self,
        config: ControllerConfig,
        state: Path,
        commit_log: CommitLog,
        blobs: BlobStore,
        runtime: Runtime,
        membership: Membership,
    ) -> None:
        """`state`: the database file; its directory is this process's alone. `membership`: all controllers of the cloud."""
        self._me, self._membership = described(config), membership
        self.at_work = asyncio.Event()  # in `run`: what has to be done first is done
        self.database = Database(state, commit_log, runtime)
        self.cloud = Cloud(self.database, runtime)
        self.authority = Authority(config.data_dir / "ca", runtime)
        self.operations = operations(config)
        self.tasks = TaskEngine(self.database, self.operations, runtime)
        self._lay_agents(config, runtime)
        self._lay_reconcilers(config, runtime)
        self._lay_verbs(config, blobs)

    def _lay_agents(self, config: ControllerConfig, runtime: Runtime) -> None:
        settings = SessionSettings(
            self._all_agents,
            config.agents.heartbeat_interval_s,
            config.agents.silence_max_s,
        )
        compilers = {"computed": compile_compute, "networkd": compile_network, "storaged": compile_storage}
        takers = observed_server.TAKERS | observed_port.TAKERS | observed_router.TAKERS | observed_storage.TAKERS
        intake = Intake(takers, telemetry.take)
        self.sessions = Sessions(self.database, compilers, intake, settings, runtime)

    def _lay_reconcilers(self, config: ControllerConfig, runtime: Runtime) -> None:
        database = self.database
        self._lost_nodes = LostNodes(database, runtime, config.agents.lost_after_s)
        self._router_placement = RouterPlacement(database)
        self.verify = Verify(database, runtime)
        self._passes = (StuckStates(database), OrphanClaims(database), Expiry(database), Recovery(database, runtime))

    def _lay_verbs(self, config: ControllerConfig, blobs: BlobStore) -> None:
        cloud = self.cloud
        self.passwords = Passwords(cloud)
        self.login = Login(cloud, self.passwords)
        self.identity = Identity(cloud, self.passwords, ensure_default)
        self.nodes = Nodes(cloud, self.authority, self._all_apis, self._all_agents, self.sessions.clock_offset_s)
        self.quotas = Quotas(cloud)
        self.history = History(cloud)
        self.flavors = Flavors(cloud)
        self.keypairs = Keypairs(cloud)
        self.images = Images(cloud, blobs)
        self.volumes = Volumes(cloud)
        self.servers = Servers(cloud, self.operations, ConsoleLogs(self.sessions))
        self.networks = Networks(cloud, mtu=config.network_mtu)
        self.subnets = Subnets(cloud)
        self.ports = Ports(cloud)
        self.routers = Routers(cloud)
        self.floating_ips = FloatingIps(cloud)
        self.security_groups = SecurityGroups(cloud)
        self.cluster = Cluster(
            cloud, self._membership, self.verify, self._me, config.data_dir,
            lambda: certificate.present(config, certificate.AUTHORITY_FILES),
        )  # fmt: skip

    def _all_apis(self) -> list[str]:
        """Where the public API answers, this controller first: what a node that joins is told."""
        return list(dict.fromkeys([self._me.api, *(member.api for member in self._membership.members().values())]))

    def _all_agents(self) -> list[str]:
        """Where agents can dial: this controller, then whoever would lead after it."""
        members = self._membership.members()
        return [self._me.agents, *(members[name].agents for name in heirs(self._me.name, members))]

    async def open(self) -> None:
        """Errors: ConfigError; Fenced, Unavailable of a replicated log."""
        await self.database.open()

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.database.run())
            await self.database.write(_after_restart)
            for room in (self.sessions, self._lost_nodes, self._router_placement, self.verify):
                self.database.subscribe(room.notice)
            for worker in (self.tasks, self._lost_nodes, self._router_placement, self.verify, *self._passes):
                group.create_task(worker.run())
            self.at_work.set()

    async def close(self) -> None:
        self.passwords.close()
        await self.database.close()


def _after_restart(tx: Tx) -> None:
    """What ended with the process before: sessions, uploads."""
    node.all_disconnected(tx)
    image.end_uploads(tx)
