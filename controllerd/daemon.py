"""controllerd as a program: the controller behind its sockets. For its command line see `acts`.

The front is always up. Without `cluster.etcd` this controller leads from start to end; with it, whenever it is elected.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from controllerd import acts, divergence, renewal
from controllerd.agents.blob import GrpcBlobStore
from controllerd.api.rpc.agent import AgentService
from controllerd.api.rpc.services import NAMES, public_services
from controllerd.api.rpc.switch import Services
from controllerd.config import ControllerConfig
from controllerd.controller import Controller
from controllerd.leadership.commit_log import CommitLog
from controllerd.leadership.elector import StuckTerm
from controllerd.leadership.etcd.apart import Apart
from controllerd.leadership.etcd.client import EtcdKv
from controllerd.leadership.upkeep import Upkeep
from controllerd.peers.forward import ForwardSettings
from controllerd.peers.front import Front, FrontSettings
from controllerd.peers.service import PeerService
from controllerd.peers.snapshot import SnapshotClient
from controllerd.store import snapshot
from controllerd.terms import Alone, Contender
from daemonkit import handshake, log, metrics
from daemonkit.config import describe, load
from daemonkit.errors import SkyrackError
from daemonkit.lifecycle import DataDirectory, Lifecycle, run
from daemonkit.runtime import Runtime, system_runtime
from daemonkit.tls import TlsFiles
from skyrack.v1 import agent_pb2_grpc, peer_pb2_grpc

STATE = "state.db"
SWITCH_INTERVAL_S = 0.0005
OUTGOING = "outgoing-{}.db"  # a snapshot while it is sent
LEAVE_MAX_S = 3.0  # for another controller to answer calls


async def serve(config: ControllerConfig, life: Lifecycle, runtime: Runtime) -> None:
    """Until it is told to stop. Errors: ConfigError; Diverged, StuckTerm, Unavailable when it must not go on."""
    async with AsyncExitStack() as stack:
        directory = DataDirectory(config.data_dir)
        stack.callback(directory.close)
        divergence.check(config.data_dir / STATE)
        _remove_leftovers(config.data_dir)
        renewal.renew(config, runtime)
        metrics.INFO.labels("controllerd", version("skyrack")).set(1)
        if config.metrics_listen:
            stack.callback(metrics.serve(config.metrics_listen).shutdown)
        daemon = Daemon(config, life, runtime)
        stack.push_async_callback(daemon.close)
        async with asyncio.TaskGroup() as group:
            jobs = (daemon.run(), metrics.watch_loop_lag(), renewal.watch(renewal.ends(config), runtime))
            work = [group.create_task(job) for job in jobs]
            await life.stopping.wait()
            await daemon.leave()
            for task in work:
                task.cancel()


class Daemon:
    """The rooms that outlive a term, and what is built for each."""

    def __init__(self, config: ControllerConfig, life: Lifecycle, runtime: Runtime) -> None:
        self._config, self._life, self._runtime = config, life, runtime
        self._tls = TlsFiles(config.tls_dir)
        self._state = config.data_dir / STATE
        self._kv = EtcdKv(config.cluster.etcd, config.cluster.etcd_tls_dir) if config.cluster.etcd else None
        self._terms = self._alone_or_not()
        forward = ForwardSettings(hold_max_s=config.cluster.hold_max_s)
        settings = FrontSettings(config.api_listen, config.agents_listen, forward)
        self._front = Front(self._terms, settings, NAMES, self._tls, runtime)

    def _alone_or_not(self) -> Alone | Contender:
        if self._kv is None:
            return Alone(self._config, self._runtime)
        snapshots = SnapshotClient(self._tls, self._runtime)
        return Contender(self._config, self._state, self._kv, snapshots.fetch_snapshot, self._runtime)

    async def run(self) -> None:
        """Until cancelled. Errors: as `serve`."""
        await self._front.start()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._front.run())
            group.create_task(self._run_terms())
            if self._kv is not None and isinstance(self._terms, Contender):
                group.create_task(_upkeep(self._kv, self._terms, self._runtime).run())
                self._life.ready(f"standing by, API on {self._config.api_listen}")

    async def _run_terms(self) -> None:
        try:
            await self._terms.run(self._build, self._answering)
        except* StuckTerm:
            os._exit(1)  # an orderly end would wait for what is stuck

    async def leave(self) -> None:
        """Before `run` is cancelled: what can go to another controller goes there."""
        if isinstance(self._terms, Contender) and await self._terms.leave():
            await self._front.leave(LEAVE_MAX_S)

    def _build(self, commit_log: CommitLog) -> Controller:
        blobs = GrpcBlobStore(self._tls)
        return Controller(self._config, self._state, commit_log, blobs, self._runtime, self._terms)

    @asynccontextmanager
    async def _answering(self, controller: Controller) -> AsyncIterator[None]:
        """Callers are let in to a term."""
        peers = PeerService(lambda: self._snapshot(controller), self._runtime)
        inner: Services = {
            "skyrack.v1.AgentService": (
                agent_pb2_grpc.add_AgentServiceServicer_to_server,
                AgentService(controller.sessions),
            ),
            "skyrack.v1.PeerService": (peer_pb2_grpc.add_PeerServiceServicer_to_server, peers),
        }
        try:
            async with self._front.lead(public_services(controller), inner), self._etcd_apart():
                self._life.ready(f"leading, epoch {controller.database.epoch}, API on {self._config.api_listen}")
                yield
        finally:
            peers.close()
            self._life.tell("standing by")

    @asynccontextmanager
    async def _etcd_apart(self) -> AsyncIterator[None]:
        """While this controller leads, etcd's leader is on another machine."""
        cluster = self._config.cluster
        if not cluster.etcd:
            yield
            return
        work = asyncio.ensure_future(Apart(cluster.etcd, cluster.etcd_tls_dir, self._config.node).run())
        try:
            yield
        finally:
            work.cancel()

    async def _snapshot(self, controller: Controller) -> tuple[int, Path]:
        path = self._config.data_dir / OUTGOING.format(self._runtime.new_id())
        return (await snapshot.take(controller.database, path)).position.seq, path

    async def close(self) -> None:
        await self._front.stop()
        if self._kv is not None:
            await self._kv.close()


def _remove_leftovers(directory: Path) -> None:
    """Snapshots that were being sent when the process was killed, and what SQLite kept beside them."""
    for left in directory.glob(OUTGOING.format("*") + "*"):
        left.unlink(missing_ok=True)


def _upkeep(kv: EtcdKv, contender: Contender, runtime: Runtime) -> Upkeep:
    return Upkeep(kv, kv.reclaim, lambda: contender.applied_seq, lambda: contender.leads, runtime)


def main() -> int:
    arguments = acts.parse()
    if arguments.print_config:
        print(describe(ControllerConfig), end="")
        return 0
    if arguments.act == "serve":
        return _serve(arguments.config)
    try:
        config = load(ControllerConfig, arguments.config)
        log.setup("controllerd", config.log_level)
        print(acts.act(config, arguments), file=sys.stderr if arguments.act == "bundle" else sys.stdout)
    except SkyrackError as error:
        print(f"cannot {arguments.act}: {error.message}", file=sys.stderr)
        return 1
    return 0


def _serve(path: Path) -> int:
    # The writer's thread gives the interpreter away at each statement, and would wait 5 ms to have it back from a busy loop.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    end = handshake.count_refused()
    try:
        config = load(ControllerConfig, path)
        log.setup("controllerd", config.log_level)
        return run(lambda life: serve(config, life, system_runtime()))
    except SkyrackError as error:
        print(f"cannot start: {error.message}", file=sys.stderr)
        return 1
    finally:
        end()


if __name__ == "__main__":
    sys.exit(main())
