"""`skyrack-controllerd restore`: brings a cloud back from a backup, on a blank machine or over the state that is there.

The daemon must be stopped, and with etcd those of all controllers. What is refused changes nothing. The former state is kept
beside, with the time in its name. The restored state is a history of its own: it gets another cluster id, so that no copy of
the former one is ever taken for one of it, and the log in etcd is emptied for it. The other controllers then start with
`skyrack-controllerd restore --from-leader`, which sets their copies aside.

What happens to the nodes when the controller starts: `controllerd.reconcilers.recovery`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from controllerd import certificate, divergence
from controllerd.bootstrap import issue_missing
from controllerd.bundle import mark_member
from controllerd.config import ControllerConfig
from controllerd.leadership import key
from controllerd.leadership.kv import Created, Delete, Kv, Put
from controllerd.store import backup, restored
from controllerd.store.backup import About
from daemonkit.errors import ConfigError
from daemonkit.lifecycle import DataDirectory
from daemonkit.runtime import Runtime

STATE = "state.db"
CLOCK_BEHIND_MAX_S = 86400.0
_NEW = "state.db.restoring"
_COMPANIONS = ("", "-wal", "-shm", "-journal")
_NEVER = Created(key.LEADER, -1)  # so that the transaction is a look
_NODES_TRUST = ("ca/ca.key", "ca/ca.pem")


async def restore(
    config: ControllerConfig, file: Path, kv: Kv | None, runtime: Runtime, *, replace: bool, names: Sequence[str] = ()
) -> str:
    """Gives a line for people. `kv`: of the cloud's etcd; None without one. `names`: as at bootstrap. Errors: ConfigError."""
    about = backup.read(file)
    if strange := set(about.files) - set(certificate.AUTHORITY_FILES):  # a name is a path here
        raise ConfigError(f"{file} holds files that are no authority's: {', '.join(sorted(strange))}")
    _check_clock(about, runtime.clock.wall_s())
    directory = DataDirectory(config.data_dir)
    try:
        _check(config, replace)
        cluster_id, now = runtime.new_id(), runtime.clock.wall_s()
        claim = await _look_at_log(kv, _own_ids(config, about), replace) if kv else []
        new = _prepare(config, file, about, cluster_id, now)
        if kv:
            await _empty_log(kv, claim, cluster_id)
        kept = _set_aside(config, now)
        _install_files(config, about, names, runtime, now)
        new.replace(config.data_dir / STATE)
        _sync(config.data_dir)
        divergence.clear(config.data_dir / STATE)
    finally:
        directory.close()
    told = f"the cloud is as of {_moment(about.taken_at)}; start this controller, then look at `skyrack cluster verify`"
    return f"{told}. The former state is kept: {kept}" if kept else told


def from_leader(config: ControllerConfig, runtime: Runtime) -> str:
    """Sets this controller's copy aside, so that it takes a new one from the leader. Errors: ConfigError."""
    if not config.cluster.etcd:
        raise ConfigError("cluster.etcd is not set: there is no other controller to have the state from")
    directory = DataDirectory(config.data_dir)
    try:
        mark_member(config)  # or the next bootstrap would make another cloud here
        kept = _set_aside(config, runtime.clock.wall_s())
        divergence.clear(config.data_dir / STATE)
    finally:
        directory.close()
    return f"this controller takes its state from the leader. The former is kept: {kept}" if kept else "there was no state here"


def _check_clock(about: About, now: float) -> None:
    """The new epoch is made of the time: with a clock far behind it might be one that agents have left behind them."""
    if now < about.taken_at - CLOCK_BEHIND_MAX_S:
        told = f"this machine's clock says {_moment(now)}, and the backup was made at {_moment(about.taken_at)}"
        raise ConfigError(f"{told}: set the clock first")


def _check(config: ControllerConfig, replace: bool) -> None:
    if (config.data_dir / STATE).exists() and not replace:
        raise ConfigError(f"{config.data_dir / STATE} is there already; --replace sets it aside")


# ---- the log of several controllers


def _own_ids(config: ControllerConfig, about: About) -> set[str]:
    """Every cloud that this backup, or a state on this machine, is or was of."""
    files = [f for f in config.data_dir.glob(f"{STATE}*") if not f.name.endswith(_COMPANIONS[1:])]
    return {about.cluster_id, *filter(None, map(restored.cluster_id_of, files))}


async def _look_at_log(kv: Kv, own: set[str], replace: bool) -> list[Created]:
    """Gives what must still be so when the log is emptied. Errors: ConfigError: it is not ours to empty; Unavailable."""
    cluster, leader = (await kv.txn([_NEVER], [], [key.CLUSTER, key.LEADER])).found
    if leader is not None:
        raise ConfigError("a controller leads: stop the controllers on all machines first")
    if cluster is not None and cluster.value.decode() not in own:
        raise ConfigError(f"etcd has the log of another cloud ({cluster.value.decode()}): it is left alone")
    if not replace and (cluster is not None or (await kv.range(key.LOG, key.after(key.LOG), 1)).items):
        raise ConfigError("etcd has a log of this cloud; --replace empties it")
    return [Created(key.LEADER, 0), Created(key.CLUSTER, cluster.create_revision if cluster else 0)]


async def _empty_log(kv: Kv, claim: list[Created], cluster_id: str) -> None:
    """From now on no copy of the former state can lead."""
    changes: list[Put | Delete] = [Delete(key.LOG, key.after(key.LOG)), Put(key.CLUSTER, cluster_id.encode())]
    if not (await kv.txn(claim, changes)).succeeded:
        raise ConfigError("a controller began to lead meanwhile: stop the controllers on all machines first")


# ---- files


def _prepare(config: ControllerConfig, file: Path, about: About, cluster_id: str, now: float) -> Path:
    """The new state, finished but not in place."""
    new = config.data_dir / _NEW
    for companion in _COMPANIONS:
        Path(f"{new}{companion}").unlink(missing_ok=True)
    try:
        new.touch(0o600)
        shutil.copyfile(file, new)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None
    restored.make_own(new, cluster_id, about.taken_at, now)
    return new


def _set_aside(config: ControllerConfig, now: float) -> str:
    """Gives the path of the former state, "" where there was none. Never over one that was kept before."""
    state = config.data_dir / STATE
    if not state.exists():
        return ""
    kept = Path(f"{state}.{_stamp(now)}")
    number = 1
    while kept.exists():
        number += 1
        kept = Path(f"{state}.{_stamp(now)}.{number}")
    for companion in reversed(_COMPANIONS):  # the state itself last: what was broken off is done by the next try
        if (part := Path(f"{state}{companion}")).exists():
            part.replace(f"{kept}{companion}")
    _sync(config.data_dir)
    return str(kept)


def _install_files(config: ControllerConfig, about: About, names: Sequence[str], runtime: Runtime, now: float) -> None:
    """The authorities of the backup, and with them certificates for this controller. What opens the etcd that is here stays."""
    there = certificate.present(config, about.files)
    wanted = {name: content for name, content in about.files.items() if name in _NODES_TRUST or name not in there}
    if any(there.get(name, content) != content for name, content in wanted.items()):  # of another cloud
        home = config.data_dir / "ca"
        shutil.copytree(home, f"{home}.{_stamp(now)}", dirs_exist_ok=True)
        for name in certificate.NODE_FILES:
            certificate.path(config, name).unlink(missing_ok=True)
    certificate.write(config, wanted)
    issue_missing(config, names, runtime)


def _stamp(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
