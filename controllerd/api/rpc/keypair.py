"""KeypairService."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty

from controllerd.api.rpc.gate import Context, Gate, once, page, timestamp
from controllerd.app.keypair import Keypairs
from controllerd.domain import keypair as domain
from skyrack.v1 import keypair_pb2 as pb
from skyrack.v1 import keypair_pb2_grpc


class KeypairService(keypair_pb2_grpc.KeypairServiceServicer):
    def __init__(self, gate: Gate, keypairs: Keypairs) -> None:
        self._gate, self._keypairs = gate, keypairs

    async def CreateKeypair(self, request: pb.CreateKeypairRequest, context: Context) -> pb.Keypair:
        caller = await self._gate.caller(context)
        return render(await self._keypairs.create(caller, request.name, request.public_key, once(request)))

    async def GetKeypair(self, request: pb.GetKeypairRequest, context: Context) -> pb.Keypair:
        caller = await self._gate.caller(context)
        return render(await self._keypairs.get(caller, request.keypair_id))

    async def ListKeypairs(self, request: pb.ListKeypairsRequest, context: Context) -> pb.ListKeypairsResponse:
        caller = await self._gate.caller(context)
        found = await self._keypairs.list(caller, request.name, page(request))
        return pb.ListKeypairsResponse(keypairs=[render(k) for k in found.items], next_page_token=found.next_token)

    async def DeleteKeypair(self, request: pb.DeleteKeypairRequest, context: Context) -> Empty:
        caller = await self._gate.caller(context)
        await self._keypairs.delete(caller, request.keypair_id)
        return Empty()


def render(keypair: domain.Keypair) -> pb.Keypair:
    return pb.Keypair(
        id=keypair.id, name=keypair.name, public_key=keypair.public_key, fingerprint=keypair.fingerprint,
        created_at=timestamp(keypair.created_at),
    )  # fmt: skip
