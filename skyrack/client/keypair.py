"""Keypairs: a user's public SSH keys. The private half never goes to the cloud."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty

from skyrack.client.collection import Collection, Ref, id_of, new_key
from skyrack.v1 import keypair_pb2 as pb


@dataclass(frozen=True)
class Keypair:
    id: str
    name: str
    public_key: str
    fingerprint: str
    created_at: datetime.datetime | None


class Keypairs(Collection[Keypair]):
    kind, service, record = "keypair", "KeypairService", Keypair

    async def create(self, name: str, *, public_key: str) -> Keypair:
        """`public_key`: one line as in ~/.ssh/id_ed25519.pub. Errors: InvalidArgument, AlreadyExists."""
        request = pb.CreateKeypairRequest(name=name, public_key=public_key, idempotency_key=new_key())
        return await self._one("CreateKeypair", request, pb.Keypair)

    async def get(self, ref: Ref) -> Keypair:
        return await self._one("GetKeypair", pb.GetKeypairRequest(keypair_id=id_of(ref)), pb.Keypair)

    def list(self, *, name: str = "") -> AsyncIterator[Keypair]:
        return self._pages("ListKeypairs", pb.ListKeypairsRequest(name=name), pb.ListKeypairsResponse, "keypairs")

    async def delete(self, ref: Ref) -> None:
        """Servers that have the key keep it."""
        await self._delete("DeleteKeypair", pb.DeleteKeypairRequest(keypair_id=id_of(ref)), Empty)
