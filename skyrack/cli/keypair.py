"""`skyrack keypair ...`. A new key is made here; only its public half leaves the machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from skyrack.cli.output import Details, Done, Output, Table, Text
from skyrack.cli.parse import find_all
from skyrack.cli.verb import verb

if TYPE_CHECKING:
    from skyrack.client import Cloud

keypair = click.Group("keypair", help="SSH keys put into servers.")
path_option = click.Path(dir_okay=False, path_type=Path)


@verb(keypair, "create", help="Register a public key, or make a pair. The private key is printed.")
@click.argument("name")
@click.option("--public-key", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="e.g. ~/.ssh/id_ed25519.pub")
@click.option("--private-key", type=path_option, help="Write the new private key here instead of printing it.")
async def create(cloud: Cloud, *, name: str, public_key: Path | None, private_key: Path | None) -> Output:
    if public_key and private_key:
        raise click.UsageError("give --public-key or --private-key, not both")
    if public_key:
        return Details(await cloud.keypairs.create(name, public_key=public_key.read_text().strip()))  # noqa: ASYNC240
    private, public = _new_pair(name)
    if private_key is None:
        await cloud.keypairs.create(name, public_key=public)
        return Text(private, "private_key")
    _write_new(private_key, private)
    try:
        return Details(await cloud.keypairs.create(name, public_key=public))
    except BaseException:
        private_key.unlink()  # noqa: ASYNC240
        raise


def _new_pair(comment: str) -> tuple[str, str]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), f"{public.decode()} {comment}"


def _write_new(path: Path, content: str) -> None:
    """A file only its owner can read. Errors: FileExistsError: a key is never overwritten."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)


@verb(keypair, "list", help="Your keypairs.")
async def list_keypairs(cloud: Cloud) -> Output:
    rows = [row async for row in cloud.keypairs.list()]
    return Table(rows, {"ID": "id", "Name": "name", "Fingerprint": "fingerprint"})


@verb(keypair, "show", help="A keypair's public half.")
@click.argument("name")
async def show(cloud: Cloud, *, name: str) -> Output:
    return Details(await cloud.keypairs.find(name))


@verb(keypair, "delete", help="Delete keypairs. Servers that have the key keep it.")
@click.argument("names", nargs=-1, required=True, metavar="KEYPAIR...")
async def delete(cloud: Cloud, *, names: Sequence[str]) -> Output:
    rows = await find_all(cloud.keypairs, names)
    for row in rows:
        await cloud.keypairs.delete(row)
    return Done("", {"deleted": [row.id for row in rows]})
