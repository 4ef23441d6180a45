"""The framing: what goes out comes back in however it is cut, and nothing outside the caps is ever built."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios.errors import BadInput, LimitExceeded, ProtocolError
from aios.ipc.stream import (
    FRAME_BYTES_MAX,
    FRAME_DEPTH_MAX,
    FRAME_ELEMENTS_MAX,
    MSGID_MAX,
    Framer,
    Message,
    Notification,
    Request,
    Response,
    encode,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
    | st.text(max_size=40) | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5), max_leaves=20)
IDS = st.integers(0, MSGID_MAX)
MESSAGES = (
    st.builds(lambda i, v, p: Request(msgid=i, verb=v, params=p), IDS, st.text(max_size=20),
              st.lists(VALUES, max_size=2))
    | st.builds(lambda i, e, r: Response(msgid=i, error=e, result=r), IDS, VALUES, VALUES)
    | st.builds(lambda m, p: Notification(method=m, params=p), st.text(max_size=20), st.lists(VALUES, max_size=2)))


def received(data: bytes, size: int = 1 << 16) -> list[Message]:
    framer = Framer()
    return [message for at in range(0, len(data), size) for message in framer.feed(data[at:at + size])]


@settings(max_examples=200, deadline=None)
@given(st.lists(MESSAGES, max_size=5), st.integers(1, 50))
def test_messages_arrive_as_they_were_sent_however_they_are_cut(messages, size):
    assert received(b"".join(map(encode, messages)), size) == messages


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 20))
def test_random_bytes_are_refused_the_same_way_however_they_are_cut(data, size):
    def outcome(size: int) -> tuple[list[str], str]:
        framer, seen = Framer(), []
        try:
            for at in range(0, len(data), size):
                seen += [repr(message) for message in framer.feed(data[at:at + size])]     # NaN is not itself
        except ProtocolError as error:
            return seen, error.message
        return seen, f"partial: {framer.partial}"

    assert outcome(size) == outcome(len(data) + 1)


def test_the_wire_format_is_standard_messagepack_rpc():
    assert msgpack.unpackb(encode(Request(msgid=7, verb="ping", params=[]))) == [0, 7, "ping", []]
    assert msgpack.unpackb(encode(Response(msgid=7, error=None, result=b"x"))) == [1, 7, None, b"x"]
    assert msgpack.unpackb(encode(Notification(method="state", params=[1]))) == [2, "state", [1]]


def test_names_may_travel_as_binary():
    assert received(msgpack.packb([2, b"hi", []])) == [Notification(method="hi", params=[])]
    assert received(msgpack.packb([0, 1, b"ping", []])) == [Request(msgid=1, verb="ping", params=[])]


@pytest.mark.parametrize("thing", [
    1, "text", None, {}, {"a": 1}, [], [0], [0, 1, "ping"], [0, 1, "ping", [], 5], [0, -1, "ping", []],
    [0, 2**32, "ping", []], [0, "1", "ping", []], [0, True, "ping", []], [0, 1, 2, []], [0, 1, "ping", {}],
    [0, 1, "ping", None], [1, 1, None], [1, None, None, None], [2, "state"], [2, 1, []], [2, "state", 3],
    [3, 1, "ping", []], [0.0, 1, "ping", []], ["0", 1, "ping", []], [False, 1, "ping", []], [True, 1, None, None],
], ids=repr)
def test_an_object_that_is_no_message_is_refused(thing):
    with pytest.raises(ProtocolError):
        received(msgpack.packb(thing))


@pytest.mark.parametrize("data", [
    b"\xc1", b"\xd4\x01\x00", b"\xc7\x01\x01\x00", b"\x94\x00\x01\xa1\xff\x90", b"\x94\x00\x01\xa1a\x91\x81\x01\x02",
    b"\x94\x00\x01\xa1a\x91\x81\x90\x02", b"\xdb\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff", b"\x91" * (FRAME_DEPTH_MAX + 1), b"\xd6\xff\x00\x00\x00\x00",
], ids=lambda data: data[:8].hex())
def test_bytes_that_cannot_become_a_message_are_refused(data):
    with pytest.raises(ProtocolError) as caught:
        received(data)
    assert caught.value.remedy


def test_messages_before_a_malformed_one_are_still_delivered():
    framer, seen = Framer(), []
    good = encode(Request(msgid=1, verb="ping", params=[]))
    with pytest.raises(ProtocolError):
        seen.extend(framer.feed(good + b"\x94\x00"))
        for message in framer.feed(b"\x02\xa1a\x90" + good + b"\xc1" + good):
            seen.append(message)
    assert [message.msgid for message in seen] == [1, 2, 1]
    with pytest.raises(ProtocolError):
        list(framer.feed(good))


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(("params", "more"), [
    ([b"x" * (FRAME_BYTES_MAX - 11)], [b"x" * (FRAME_BYTES_MAX - 10)]),
    (nested(FRAME_DEPTH_MAX - 1), nested(FRAME_DEPTH_MAX)),
    ([None] * (FRAME_ELEMENTS_MAX - 5), [None] * (FRAME_ELEMENTS_MAX - 4)),
], ids=["bytes", "depth", "elements"])
def test_what_may_be_sent_is_exactly_what_is_received(params, more):
    request = Request(msgid=1, verb="x", params=params)
    assert received(encode(request)) == [request]
    with pytest.raises(LimitExceeded):
        encode(Request(msgid=1, verb="x", params=more))
    with pytest.raises(ProtocolError):
        received(msgpack.packb([0, 1, "x", more]))


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**70, "\ud800", nested(2000)],
                         ids=["object", "set", "integer", "surrogate", "nested"])
def test_a_value_without_a_wire_form_is_refused(value):
    with pytest.raises(BadInput):
        encode(Request(msgid=1, verb="x", params=[value]))


def test_a_frame_in_many_pieces_costs_linear_time_and_is_partial_meanwhile():
    framer, frame = Framer(), encode(Request(msgid=1, verb="x", params=[b"y" * 4_000_000]))
    for at in range(0, len(frame) - 1000, 1000):
        assert not list(framer.feed(frame[at:at + 1000]))
        assert framer.partial
    tail = len(frame) - len(frame) % 1000 if len(frame) % 1000 else len(frame) - 1000
    assert len(list(framer.feed(frame[tail:]))) == 1
    assert not framer.partial
