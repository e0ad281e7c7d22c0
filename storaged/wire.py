"""Between messages of the agent protocol and storaged's own values. Nothing from the wire becomes a path unchecked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from skyrack.v1 import agent_pb2, blob_pb2
from storaged.spec import Blob, Desired, Export, HeldBlob, Image, Observed, State, Volume

GIB = 1 << 30
GIB_MAX = 1 << 20  # 1 PiB
KINDS = ("volume", "export", "blob")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_NODE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62})")
_SHA256 = re.compile(r"[0-9a-f]{64}")

_STATES = {
    State.PENDING: agent_pb2.OBSERVED_STATE_PENDING,
    State.READY: agent_pb2.OBSERVED_STATE_READY,
    State.FAILED: agent_pb2.OBSERVED_STATE_FAILED,
    State.GONE: agent_pb2.OBSERVED_STATE_GONE,
}


def is_sha256(text: str) -> bool:
    return _SHA256.fullmatch(text) is not None


def take(desired: Desired, changed: Iterable[str], objects: Mapping[str, agent_pb2.DesiredObject]) -> None:
    """Brings `desired` up to date for the keys that changed. What can't be obeyed goes to `refused` with the reason."""
    for key in sorted(changed):
        kind, _, name = key.partition("/")
        if kind not in KINDS:
            continue
        desired.refused.pop(key, None)
        _table(desired, kind).pop(name, None)
        if key in objects:
            try:
                _table(desired, kind)[name] = _PARSERS[kind](objects[key])
            except ValueError as error:
                desired.refused[key] = str(error)


def _table(desired: Desired, kind: str) -> dict[str, object]:
    tables: dict[str, dict[str, object]] = {
        "volume": desired.volumes,  # type: ignore[dict-item]
        "export": desired.exports,  # type: ignore[dict-item]
        "blob": desired.blobs,  # type: ignore[dict-item]
    }
    return tables[kind]


def _match(pattern: re.Pattern[str], text: str, what: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(f"{what} {text[:80]!r} is not one")
    return text


def _volume(spec: agent_pb2.DesiredObject) -> Volume:
    if not spec.volume.absent and not 0 < spec.volume.size_gib <= GIB_MAX:
        raise ValueError(f"size of {spec.volume.size_gib} GiB is not between 1 and {GIB_MAX}")
    image = _image(spec.volume.image) if spec.volume.HasField("image") else None
    return Volume(_match(_ID, spec.id, "volume id"), spec.volume.size_gib * GIB, image, spec.volume.absent)


def _image(ref: agent_pb2.ImageRef) -> Image:
    if ref.format not in ("qcow2", "raw"):
        raise ValueError(f"image format {ref.format[:20]!r} is not qcow2 or raw")
    return Image(_match(_SHA256, ref.sha256, "image checksum"), ref.format, ref.virtual_bytes, tuple(ref.sources))


def _export(spec: agent_pb2.DesiredObject) -> Export:
    return Export(
        _match(_ID, spec.id, "attachment id"),
        _match(_ID, spec.export.volume_id, "volume id"),
        _match(_NAME, spec.export.export_name, "export name"),
        _match(_NODE, spec.export.client_node, "node name"),
    )


def _blob(spec: agent_pb2.DesiredObject) -> Blob:
    return Blob(_match(_SHA256, spec.id, "image checksum"), spec.blob.absent)


_PARSERS = {"volume": _volume, "export": _export, "blob": _blob}


def observed(key: str, told: Observed) -> agent_pb2.ObservedObject:
    kind, _, name = key.partition("/")
    state, fault, size = _STATES[told.state], told.fault[:1000], told.size_bytes
    if kind == "volume":
        volume = agent_pb2.ObservedVolume(state=state, fault=fault, allocated_bytes=size, foreign=told.foreign)
        return agent_pb2.ObservedObject(id=name, volume=volume)
    if kind == "export":
        return agent_pb2.ObservedObject(id=name, export=agent_pb2.ObservedExport(state=state, fault=fault))
    return agent_pb2.ObservedObject(id=name, blob=agent_pb2.ObservedBlob(state=state, fault=fault, size_bytes=size))


def blob(held: HeldBlob) -> blob_pb2.Blob:
    return blob_pb2.Blob(
        sha256=held.sha256,
        size_bytes=held.size_bytes,
        format=held.format,
        virtual_bytes=held.virtual_bytes,
        md5=held.md5,
        sha512=held.sha512,
    )
