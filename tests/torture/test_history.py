"""The checker finds each kind of wrong, and nothing where all is well."""

from __future__ import annotations

from dataclasses import replace

from tests.torture.history import CREATE, DELETE, DONE, End, Event, Operation, judge

A = Operation("server", CREATE, "a", 1.0, 2.0, DONE)
B = Operation("server", CREATE, "b", 3.0, 4.0, DONE)
B_GONE = Operation("server", DELETE, "b", 5.0, 6.0, DONE)
EVENTS = (
    Event(1, "server.create", "1", "a"),
    Event(2, "server.create", "2", "b"),
    Event(3, "server.delete", "2", "b"),
)
END = End(EVENTS, {"server": ["a"]}, {"c1": "x", "c2": "x"})
ALL = (A, B, B_GONE)


def test_a_good_history() -> None:
    verdict = judge(ALL, END)
    assert verdict.good and verdict.acknowledged == 3


def test_a_create_that_left_no_trace() -> None:
    assert judge(ALL, replace(END, events=EVENTS[1:])).lost


def test_a_resource_that_nobody_deleted() -> None:
    assert judge((A, B), replace(END, events=EVENTS[:2])).lost


def test_a_delete_that_did_not_last() -> None:
    assert judge(ALL, replace(END, alive={"server": ["a", "b"]})).lost


def test_one_call_two_resources() -> None:
    twice = (*EVENTS, Event(4, "server.create", "3", "a"))
    assert judge(ALL, replace(END, events=twice)).doubled
    assert judge(ALL, replace(END, alive={"server": ["a", "a"]})).doubled


def test_an_order_that_clients_did_not_see() -> None:
    swapped = (replace(EVENTS[0], seq=2), replace(EVENTS[1], seq=1), EVENTS[2])
    assert judge(ALL, replace(END, events=swapped)).reordered


def test_calls_that_overlapped_may_have_any_order() -> None:
    swapped = (replace(EVENTS[0], seq=2), replace(EVENTS[1], seq=1), EVENTS[2])
    assert judge((A, replace(B, sent_s=1.5), B_GONE), replace(END, events=swapped)).good


def test_copies_that_differ() -> None:
    assert judge(ALL, replace(END, copies={"c1": "x", "c2": "y"})).diverged


def test_a_client_that_gave_up_proves_nothing() -> None:
    unknown = Operation("server", CREATE, "c", 7.0)
    assert judge((*ALL, unknown), END).good
    done = replace(END, events=(*EVENTS, Event(4, "server.create", "3", "c")), alive={"server": ["a", "c"]})
    assert judge((*ALL, unknown), done).good
