"""The command line of skyrack-controllerd, and what it does besides serving. Each act ends with a line for people.

skyrack-controllerd [serve] --config FILE
skyrack-controllerd --print-config
skyrack-controllerd bootstrap --config FILE --admin-env FILE [--api-name NAME...]
skyrack-controllerd bundle NAME --address IP [--address IP...] --config FILE [-o FILE]
skyrack-controllerd bootstrap --bundle FILE --config FILE
skyrack-controllerd restore FILE|--from-leader --config FILE [--replace] [--api-name NAME...]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from controllerd.bootstrap import bootstrap
from controllerd.bundle import install_bundle, make_bundle
from controllerd.config import ControllerConfig
from controllerd.leadership.etcd.client import EtcdKv
from controllerd.restore import from_leader, restore
from daemonkit.errors import ConfigError
from daemonkit.runtime import system_runtime
from daemonkit.tls import write_private


def act(config: ControllerConfig, arguments: argparse.Namespace) -> str:
    """Anything but serve. Errors: ConfigError; Unavailable (etcd does not answer)."""
    try:
        if arguments.act == "bundle":
            bundle = make_bundle(config, arguments.name, arguments.address, system_runtime())
            return _write_bundle(arguments.output or f"{arguments.name}.bundle", bundle)
        if arguments.act == "restore":
            return asyncio.run(_restore(config, arguments))
        if arguments.bundle:
            given = sys.stdin.buffer.read() if arguments.bundle == "-" else Path(arguments.bundle).read_bytes()
            return install_bundle(config, given)
    except OSError as error:
        raise ConfigError(f"{error.filename or 'bundle'}: {error.strerror}") from None
    return asyncio.run(bootstrap(config, arguments.api_name, arguments.admin_env, system_runtime()))


async def _restore(config: ControllerConfig, arguments: argparse.Namespace) -> str:
    """Errors: ConfigError, Unavailable (etcd does not answer)."""
    if arguments.from_leader:
        return from_leader(config, system_runtime())
    kv = EtcdKv(config.cluster.etcd, config.cluster.etcd_tls_dir) if config.cluster.etcd else None
    try:
        file, replace, names = Path(arguments.name), arguments.replace, arguments.api_name
        return await restore(config, file, kv, system_runtime(), replace=replace, names=names)
    finally:
        if kv:
            await kv.close()


def _write_bundle(output: str, bundle: bytes) -> str:
    if output == "-":
        sys.stdout.buffer.write(bundle)
        return "whoever reads this can issue certificates of this cloud"
    write_private(Path(output), bundle)
    return f"{output}: whoever has it can issue certificates of this cloud; remove it after use"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="skyrack-controllerd", description="The controller of a Skyrack cloud.")
    parser.add_argument("act", nargs="?", choices=["serve", "bootstrap", "bundle", "restore"], default="serve")
    parser.add_argument("name", nargs="?", help="bundle: name of the controller that it is for; restore: the backup's file")
    parser.add_argument("--config", type=Path, default=Path("/etc/skyrack/controllerd.toml"))
    parser.add_argument("--print-config", action="store_true", help="print every option with its default, and end")
    env = Path("/etc/skyrack/admin.env")
    parser.add_argument("--admin-env", type=Path, default=env, help="bootstrap: where the admin's access is written")
    parser.add_argument(
        "--api-name", action="append", default=[], help="bootstrap, restore: a further name or address of the API"
    )
    parser.add_argument("--bundle", metavar="FILE", help="bootstrap: as another controller made it; - = standard input")
    parser.add_argument("--address", action="append", default=[], help="bundle: an address or name of that controller")
    parser.add_argument("-o", "--output", metavar="FILE", help="bundle: default NAME.bundle; - = standard output")
    parser.add_argument("--replace", action="store_true", help="restore: over a state that is there; it is kept beside")
    further = "restore: no file; set this copy aside, and take a new one from the controller that was restored"
    parser.add_argument("--from-leader", action="store_true", help=further)
    arguments = parser.parse_args()
    needs = {"bundle": "the name of a controller", "restore": "" if arguments.from_leader else "the file of a backup"}
    if (arguments.name is not None) != bool(needed := needs.get(arguments.act, "")):
        parser.error(f"{arguments.act} needs {needed}" if needed else f"unknown: {arguments.name}")
    return arguments
