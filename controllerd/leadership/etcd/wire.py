"""Between the port `leadership.kv` and etcd's messages. Keys are UTF-8 there."""

from __future__ import annotations

from collections.abc import Sequence

from controllerd.leadership.etcd import etcd_pb2
from controllerd.leadership.kv import Change, Created, Delete, KeyValue, Page, Put, TxnResult


def txn(conditions: Sequence[Created], changes: Sequence[Put | Delete], look: Sequence[str]) -> etcd_pb2.TxnRequest:
    return etcd_pb2.TxnRequest(
        compare=[_compare(condition) for condition in conditions],
        success=[_change(change) for change in changes],
        failure=[etcd_pb2.RequestOp(request_range=one_or_range(key, "")) for key in look],
    )


def _compare(condition: Created) -> etcd_pb2.Compare:
    return etcd_pb2.Compare(
        result=etcd_pb2.Compare.EQUAL,
        target=etcd_pb2.Compare.CREATE,
        key=condition.key.encode(),
        create_revision=condition.revision,
    )


def _change(change: Put | Delete) -> etcd_pb2.RequestOp:
    if isinstance(change, Put):
        put = etcd_pb2.PutRequest(key=change.key.encode(), value=change.value, lease=change.lease)
        return etcd_pb2.RequestOp(request_put=put)
    delete = etcd_pb2.DeleteRangeRequest(key=change.key.encode(), range_end=change.end.encode())
    return etcd_pb2.RequestOp(request_delete_range=delete)


def one_or_range(first: str, end: str, limit: int = 0) -> etcd_pb2.RangeRequest:
    """Linearizable, in ascending order of keys: both are etcd's defaults."""
    return etcd_pb2.RangeRequest(key=first.encode(), range_end=end.encode(), limit=limit)


def txn_result(answer: etcd_pb2.TxnResponse) -> TxnResult:
    if answer.succeeded:
        return TxnResult(True, answer.header.revision)
    looks = (response.response_range.kvs for response in answer.responses)
    return TxnResult(False, answer.header.revision, tuple(_key_value(kvs[0]) if kvs else None for kvs in looks))


def page(answer: etcd_pb2.RangeResponse) -> Page:
    return Page(tuple(_key_value(kv) for kv in answer.kvs), answer.header.revision, answer.more)


def _key_value(kv: etcd_pb2.KeyValue) -> KeyValue:
    return KeyValue(kv.key.decode(), kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def changes(answer: etcd_pb2.WatchResponse) -> list[Change]:
    return [_event(event) for event in answer.events]


def _event(event: etcd_pb2.Event) -> Change:
    gone = event.type == etcd_pb2.Event.DELETE
    return Change(event.kv.key.decode(), None if gone else event.kv.value, event.kv.mod_revision)
