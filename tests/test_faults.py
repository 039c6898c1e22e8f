"""What a hostile or broken client can do, and that it costs nobody else a tick."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from tests.serving import (
    BINARY,
    CLOSE,
    COMMAND,
    CONTINUATION,
    MASK,
    PING,
    PONG,
    TEXT,
    Frame,
    House,
    Peer,
    client_frame,
    dial_tcp,
    open_house,
    request_head,
    service,
)
from ticker.guard import GuardOptions
from ticker.wire import NATIVE

PING_REQUEST = b'{"method":"ping","req_id":1}'


@asynccontextmanager
async def witness(house: House, caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Have a healthy client beside the block; it must see every trade, and the log no defect."""
    healthy = await house.visit()
    await healthy.subscribe("trade", snapshot=False)
    await house.trade(3)
    yield
    await house.trade(3)
    with trio.fail_after(10):
        ids = await healthy.trade_ids(house.traded)
        assert ids == list(range(1, house.traded + 1))
        assert (await healthy.ask({"method": "ping", "req_id": 9}))["req_id"] == 9
    await trio.testing.wait_all_tasks_blocked()
    assert house.server.statistics().sessions == 1
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []


# One client at a time that does its worst


def reset(peer: Peer) -> None:
    """Leave with a TCP reset."""
    peer.stream._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    peer.leave()


async def non_ascii_header(house: House) -> None:
    for name in ("Host", "Connection", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions"):
        peer = house.dial()
        await peer.send(request_head(without=(name.lower(),), extra=(f"{name}: caf\xe9",)))
        assert (await peer.answer()).startswith(b"HTTP/1.1 400 ")
        peer.leave()


async def over_size_message_then_ping(house: House) -> None:
    peer = await house.visit()
    await peer.send(client_frame(TEXT, bytes(20_000)) + client_frame(PING))
    assert await peer.farewell() == 1009
    peer.leave()


async def over_size_by_fragments_then_ping(house: House) -> None:
    peer = await house.visit()
    await peer.send_frame(TEXT, bytes(9000), fin=False)
    await peer.send_frame(CONTINUATION, bytes(9000), fin=False)
    await peer.send_frame(PING)
    assert await peer.farewell() == 1009
    peer.leave()


async def ping_after_our_close(house: House) -> None:
    peer = await house.visit()
    list(house.server.sessions.values())[-1].end(4503, "replaced")
    assert (await peer.frame()) == Frame(CLOSE, (4503).to_bytes(2) + b"replaced")
    await peer.send(client_frame(PING) * 3)
    await peer.send_frame(CLOSE, (4503).to_bytes(2))
    assert await peer.rest() == []
    peer.leave()


async def data_before_the_answer(house: House) -> None:
    peer = house.dial()
    await peer.shake_hands(request_head() + client_frame(TEXT, PING_REQUEST) * 300)
    assert [(await peer.reply())["method"] for _ in range(300)] == ["pong"] * 300
    peer.leave()


async def deep_json(house: House) -> None:
    peer = await house.visit()
    for text in (b"[" * 16_000, b'{"a":' * 3000, b'{"method":"ping","params":' + b'{"a":' * 2000 + b"1" + b"}" * 2001):
        await peer.send_frame(TEXT, text)
        assert (await peer.reply())["success"] is False
    peer.leave()


async def lone_surrogates(house: House) -> None:
    peer = await house.visit()
    for text in (rb'{"method":"\ud800"}', rb'{"method":"ping","params":{"\udfff":1}}', rb'{"method":"a\ud83d"}'):
        await peer.send_frame(TEXT, text)
        assert (await peer.reply())["success"] is False
    await peer.send_frame(TEXT, rb'{"method":"\ud83d\ude00"}')  # a pair is a character
    assert "\N{GRINNING FACE}" in (await peer.reply())["error"]
    peer.leave()


async def empty_fragments(house: House) -> None:
    peer = await house.visit()
    await peer.send(client_frame(TEXT, fin=False) + client_frame(CONTINUATION, fin=False) * 1000)
    assert await peer.farewell() == 1008
    peer.leave()


async def ping_flood(house: House) -> None:
    """The server answers a few thousand pings a second, and then does nothing else; no client needs more than a few."""
    peer = await house.visit()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_until_refused, peer, client_frame(PING) * 20_000)
        assert await peer.farewell() == 1008
    peer.leave()


async def send_until_refused(peer: Peer, data: bytes) -> None:
    try:
        await peer.send(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return


async def never_reads_and_subscribes(house: House) -> None:
    peer = await house.visit()
    await peer.send_request({"method": "subscribe", "params": {"channel": "trade", "symbol": ["BTC/USD"]}})
    for _ in range(50):
        await house.trade(100)
        await trio.testing.wait_all_tasks_blocked()
    peer.leave()


async def one_byte_at_a_time(house: House) -> None:
    peer = house.dial()
    for byte in request_head():
        await peer.send(bytes((byte,)))
    await peer.shake_hands(b"")
    for byte in client_frame(TEXT, PING_REQUEST):
        await peer.send(bytes((byte,)))
    assert (await peer.reply())["method"] == "pong"
    peer.leave()


async def half_a_frame_and_gone(house: House) -> None:
    for size in range(1, 20):
        peer = await house.visit()
        await peer.send(client_frame(TEXT, PING_REQUEST)[:size])
        peer.leave()


async def half_a_close_and_silence(house: House) -> None:
    peer = await house.visit()
    await peer.send(client_frame(CLOSE, b"\x03\xe8")[:5])
    peer.stream._socket.shutdown(socket.SHUT_WR)
    await peer.rest()
    peer.leave()


ATTACKS: list[Callable[[House], Awaitable[None]]] = [
    non_ascii_header, over_size_message_then_ping, over_size_by_fragments_then_ping, ping_after_our_close,
    data_before_the_answer, deep_json, lone_surrogates, empty_fragments, ping_flood, never_reads_and_subscribes,
    one_byte_at_a_time, half_a_frame_and_gone, half_a_close_and_silence,
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_a_hostile_client_ends_only_itself(
    attack: Callable[[House], Awaitable[None]], autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_house() as house:
        async with witness(house, caplog):
            with trio.fail_after(60):
                await attack(house)
        assert house.server.statistics().ended.get("defect", 0) == 0


async def test_bad_http_and_a_reset_end_only_that_connection(caplog: pytest.LogCaptureFixture) -> None:
    async with open_house(tcp=True) as house, witness(house, caplog):
        for data in (b"\xff\xfe\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", request_head()[:-2], request_head() + b"\x81"):
            for _ in range(10):
                peer = house.dial_tcp()
                await peer.send(data)
                reset(peer)
        while house.server.statistics().accepted < 41 or house.server.statistics().connections > 1:
            await trio.lowlevel.checkpoint()


async def test_a_defect_of_ours_costs_one_connection_and_says_1011(
    autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(message: object) -> None:
        raise RecursionError(str(message))

    async with open_house() as house:
        async with witness(house, caplog):
            peer = await house.visit()
            list(house.server.sessions.values())[-1].receive = broken
            await peer.send_frame(TEXT, PING_REQUEST)
            assert await peer.farewell() == 1011
            peer.leave()
            await trio.testing.wait_all_tasks_blocked()
            (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
            assert record.exc_info
            caplog.clear()
        assert house.server.statistics().ended == {"defect": 1}


async def test_a_flood_of_bytes_is_told_1008(autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture) -> None:
    async with open_house(guard=GuardOptions(bytes_per_s=20_000.0)) as house, witness(house, caplog):
        peer = await house.visit()
        await send_until_refused(peer, client_frame(TEXT, bytes(10_000)) * 5)
        assert await peer.farewell() == 1008
        peer.leave()


# The framing of RFC 6455, after the Autobahn test suite

EURO = "€".encode()
PONG_REPLY, REFUSED = "pong reply", "refused"


def split(payload: bytes, *cuts: int, opcode: int = TEXT, between: bytes = b"") -> bytes:
    """Return a message in fragments, with other frames between them."""
    bounds = [0, *cuts, len(payload)]
    pieces = [payload[a:b] for a, b in itertools.pairwise(bounds)]
    last = len(pieces) - 1
    return between.join(
        client_frame(CONTINUATION if n else opcode, piece, fin=n == last) for n, piece in enumerate(pieces)
    )


def closing(code: int, reason: bytes = b"") -> bytes:
    return client_frame(CLOSE, code.to_bytes(2) + reason)


CONFORMANCE: dict[str, tuple[bytes, list[object]]] = {
    # 1 framing
    "1.1 text": (client_frame(TEXT, PING_REQUEST), [PONG_REPLY]),
    "1.1 empty text": (client_frame(TEXT), [REFUSED]),
    "1.1 text of 125": (client_frame(TEXT, PING_REQUEST.ljust(125)), [PONG_REPLY]),
    "1.1 text of 126": (client_frame(TEXT, PING_REQUEST.ljust(126)), [PONG_REPLY]),
    "1.1 text of 127": (client_frame(TEXT, PING_REQUEST.ljust(127)), [PONG_REPLY]),
    "1.1 text of 16384": (client_frame(TEXT, PING_REQUEST.ljust(16_384)), [PONG_REPLY]),
    "1.1 text of 65535": (client_frame(TEXT, PING_REQUEST.ljust(65_535)), [1009]),
    "1.1 text of 65536": (client_frame(TEXT, PING_REQUEST.ljust(65_536)), [1009]),
    "1.2 binary": (client_frame(BINARY, PING_REQUEST), [REFUSED]),
    "1.2 empty binary": (client_frame(BINARY), [REFUSED]),
    # 2 pings and pongs
    "2.1 empty ping": (client_frame(PING), [Frame(PONG, b"")]),
    "2.2 ping": (client_frame(PING, b"hello"), [Frame(PONG, b"hello")]),
    "2.3 binary ping": (client_frame(PING, b"\0\xff\xfe\xfd"), [Frame(PONG, b"\0\xff\xfe\xfd")]),
    "2.4 ping of 125": (client_frame(PING, b"x" * 125), [Frame(PONG, b"x" * 125)]),
    "2.5 ping of 126": (client_frame(PING, b"x" * 126), [1002]),
    "2.7 unasked pong": (client_frame(PONG, b"x") + client_frame(TEXT, PING_REQUEST), [PONG_REPLY]),
    "2.10 ten pings": (b"".join(client_frame(PING, b"%d" % n) for n in range(10)),
                       [Frame(PONG, b"%d" % n) for n in range(10)]),
    # 3 reserved bits
    "3.1 RSV3": (client_frame(TEXT, PING_REQUEST, rsv=1), [1002]),
    "3.2 RSV2 after a message": (client_frame(TEXT, PING_REQUEST) + client_frame(TEXT, b"", rsv=2), [PONG_REPLY, 1002]),
    "3.5 RSV1 in binary": (client_frame(BINARY, b"x", rsv=4), [1002]),
    "3.6 RSV in ping": (client_frame(PING, rsv=6), [1002]),
    "3.7 RSV in Close": (client_frame(CLOSE, b"\x03\xe8", rsv=7), [1002]),
    # 4 reserved opcodes
    **{f"4 opcode {opcode}": (client_frame(opcode, b"x"), [1002]) for opcode in (3, 4, 7, 11, 12, 15)},
    # 5 fragmentation
    "5.1 fragmented ping": (client_frame(PING, b"x", fin=False), [1002]),
    "5.2 fragmented pong": (client_frame(PONG, b"x", fin=False), [1002]),
    "5.3 two fragments": (split(PING_REQUEST, 5), [PONG_REPLY]),
    "5.6 ping between fragments": (split(PING_REQUEST, 5, between=client_frame(PING, b"p")),
                                   [Frame(PONG, b"p"), PONG_REPLY]),
    "5.8 every byte a fragment": (split(PING_REQUEST, *range(1, len(PING_REQUEST))), [PONG_REPLY]),
    "5.9 continuation of nothing": (client_frame(CONTINUATION, b"x"), [1002]),
    "5.11 unfinished continuation of nothing": (client_frame(CONTINUATION, b"x", fin=False), [1002]),
    "5.12 continuation after a message": (split(PING_REQUEST, 5) + client_frame(CONTINUATION), [PONG_REPLY, 1002]),
    "5.18 text inside a message": (client_frame(TEXT, b"a", fin=False) + client_frame(TEXT, b"b"), [1002]),
    "5.19 empty fragments": (split(PING_REQUEST, 0, 0, 3, 3, len(PING_REQUEST)), [PONG_REPLY]),
    # 6 UTF-8
    "6.1 character over fragments": (split(b'{"method":"' + EURO + b'"}', 12, 13), [REFUSED]),
    "6.3 invalid": (client_frame(TEXT, b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80edited"), [1007]),
    "6.4 invalid in the second fragment": (split(EURO + b"\xff", 3), [1007]),
    "6.4 invalid over two fragments": (split(b"\xf4\x90\x80\x80", 1), [1007]),
    "6.6 cut at the end": (client_frame(TEXT, EURO[:2]), [1007]),
    "6.7 NUL": (client_frame(TEXT, b"\0"), [REFUSED]),
    "6.8 beyond Unicode": (client_frame(TEXT, b"\xf4\x90\x80\x80"), [1007]),
    "6.10 overlong": (client_frame(TEXT, b"\xc0\xaf"), [1007]),
    "6.11 surrogate": (client_frame(TEXT, b"\xed\xa0\x80"), [1007]),
    "6.20 noncharacter": (client_frame(TEXT, b"\xef\xbf\xbf"), [REFUSED]),
    "6.22 binary may be anything": (client_frame(BINARY, b"\xff\xfe"), [REFUSED]),
    # 7 closing
    "7.1 Close": (closing(1000), [1000]),
    "7.1.2 two Closes": (closing(1000) * 2, [1000]),
    "7.1.3 ping after Close": (closing(1000) + client_frame(PING), [1000]),
    "7.1.4 text after Close": (closing(1000) + client_frame(TEXT, PING_REQUEST), [1000]),
    "7.1.5 Close in a message": (client_frame(TEXT, b"x", fin=False) + closing(1000), [1000]),
    "7.3.1 empty Close": (client_frame(CLOSE), [None]),
    "7.3.2 Close of one byte": (client_frame(CLOSE, b"\x03"), [1002]),
    "7.3.5 Close of 125": (closing(1000, b"x" * 123), [1000]),
    "7.3.6 Close of 126": (closing(1000, b"x" * 124), [1002]),
    "7.5.1 Close with invalid reason": (closing(1000, b"\xce\xba\xed\xa0\x80"), [1007]),
    **{f"7.7 Close {code}": (closing(code), [code])
       for code in (1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)},
    **{f"7.9 Close {code}": (closing(code), [1002])
       for code in (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65535)},
    # 9 limits, and the mask
    "9.1 over-size by its header": (b"\x81\xff" + (2**63 - 1).to_bytes(8) + MASK, [1009]),
    "9.3 64 fragments": (split(PING_REQUEST.ljust(64), *range(1, 64)), [PONG_REPLY]),
    "9.3 65 fragments": (split(PING_REQUEST.ljust(65), *range(1, 65)), [1008]),
    "unmasked text": (client_frame(TEXT, PING_REQUEST, masked=False), [1002]),
    "unmasked ping": (client_frame(PING, masked=False), [1002]),
    "length in 2 bytes that fits 1": (b"\x81\xfe\x00\x01" + MASK + b"x", [1002]),
    "length in 8 bytes that fits 2": (b"\x81\xff" + (300).to_bytes(8) + MASK + bytes(300), [1002]),
    "HTTP again": (b"GET /v2 HTTP/1.1\r\n\r\n", [1002]),
}  # fmt: skip


def seen(frame: Frame) -> object:
    """Return what CONFORMANCE says about a frame."""
    if frame.opcode == CLOSE:
        return frame.close_code
    if frame.opcode != TEXT:
        return frame
    return PONG_REPLY if json.loads(frame.payload).get("method") == "pong" else REFUSED


@pytest.mark.parametrize("case", CONFORMANCE)
async def test_framing_is_as_in_rfc_6455(case: str, autojump_clock: trio.abc.Clock) -> None:
    data, expected = CONFORMANCE[case]
    ends = isinstance(expected[-1], int | None)
    async with open_house() as house:
        for chunk in (len(data), 1 if len(data) < 1000 else 997):
            peer = await house.visit()
            for start in range(0, len(data), chunk):
                await send_until_refused(peer, data[start : start + chunk])
                await trio.lowlevel.checkpoint()
            frames = await peer.rest() if ends else [await peer.frame() for _ in expected]
            assert [seen(frame) for frame in frames if frame] == expected
            if not ends:
                assert (await peer.ask({"method": "ping", "req_id": 77}))["req_id"] == 77
            peer.leave()
        await trio.testing.wait_all_tasks_blocked()
        assert "defect" not in house.server.statistics().ended


# Requests that are no requests

SUBSCRIBE = '{"method":"subscribe","params":%s}'
TICKER = '{"method":"subscribe","params":{"channel":"ticker","symbol":"BTC/USD",%s}}'
ORDER = '{"method":"add_order","params":{"order_type":"limit","side":"buy","symbol":"BTC/USD",%s}}'

MALFORMED: list[str] = [
    # not JSON, or not JSON that is accepted
    "", " ", "\0", "\ufeff{}", "nonsense", "{", "}", "[", '"', '{"method"', '{"method":}', '{"method":"ping"',
    "{'method':'ping'}", '{"method":"ping",}', '{"method":"ping"}{}', '{"method":"ping"} x', '{method:"ping"}',
    '// no comments\n{"method":"ping"}', '{"method":"ping","req_id":NaN}', '{"method":"ping","req_id":Infinity}',
    '{"method":"ping","req_id":-Infinity}', '{"method":"ping","params":{"a":NaN}}', '{"method":"ping","req_id":1e400}',
    '{"method":"ping","params":{"a":1e400}}', '{"method":"ping","params":{"a":1e99999999999999999999}}',
    '{"method":"ping","params":{"a":-1e-99999999999999999999}}', '{"method":"ping","req_id":0e99999999999999999999}',
    '{"method":"ping","method":"ping"}', '{"method":"ping","params":{"a":1,"a":2}}',
    '{"method":"ping","req_id":9223372036854775808}', '{"method":"ping","req_id":-9223372036854775809}',
    '{"method":"ping","req_id":' + "9" * 5000 + "}", '{"method":"ping","params":{"a":' + "1" * 5000 + "}}",
    '{"method":"ping","params":' + '{"a":' * 8 + "1" + "}" * 9, "[" * 9 + "]" * 9, '{"method":"\\ud800"}',
    '{"method":"ping","params":{"\\udc00":1}}', '{"method":"ping","a":"\\x"}', '{"method":"ping","a":"\\u12"}',
    '{"method":"ping\n"}', '{"method":"ping","req_id":01}', '{"method":"ping","req_id":+1}',
    '{"method":"ping","req_id":.5}', '{"method":"ping","req_id":0x1}', '{"method":"ping","req_id":1_000}',
    # JSON, but no request
    "null", "true", "1", '"ping"', "[]", "{}", '[{"method":"ping"}]', '{"Method":"ping"}', '{"method":null}',
    '{"method":1}', '{"method":true}', '{"method":["ping"]}', '{"method":{}}', '{"method":"ping","req_id":"1"}',
    '{"method":"ping","req_id":1.5}', '{"method":"ping","req_id":1.0}', '{"method":"ping","req_id":true}',
    '{"method":"ping","req_id":null}', '{"method":"ping","req_id":[1]}', '{"method":"ping","params":[]}',
    '{"method":"ping","params":1}', '{"method":"ping","params":"x"}', '{"event":"subscribe","pair":["XBT/USD"]}',
    # requests that cannot be done
    '{"method":""}', '{"method":"Ping"}', '{"method":"PING"}', '{"method":"' + "x" * 9000 + '"}',
    '{"method":"__init__"}', '{"method":"subscribe"}', '{"method":"subscribe","params":null}', SUBSCRIBE % "{}",
    SUBSCRIBE % '{"channel":"ticker"}', SUBSCRIBE % '{"symbol":["BTC/USD"]}',
    SUBSCRIBE % '{"channel":null,"symbol":"BTC/USD"}', SUBSCRIBE % '{"channel":"nothing","symbol":"BTC/USD"}',
    SUBSCRIBE % '{"channel":["ticker"],"symbol":"BTC/USD"}', SUBSCRIBE % '{"channel":"","symbol":"BTC/USD"}',
    SUBSCRIBE % '{"channel":"heartbeat","symbol":"BTC/USD"}', SUBSCRIBE % '{"channel":"ticker","symbol":[]}',
    SUBSCRIBE % '{"channel":"ticker","symbol":[1]}', SUBSCRIBE % '{"channel":"ticker","symbol":[["BTC/USD"]]}',
    SUBSCRIBE % '{"channel":"ticker","symbol":{"a":"b"}}', SUBSCRIBE % '{"channel":"ticker","symbol":null}',
    SUBSCRIBE % '{"channel":"ticker","symbol":true}', SUBSCRIBE % '{"channel":"ticker","symbol":"FOO/USD"}',
    SUBSCRIBE % '{"channel":"ticker","symbol":"btc/usd"}', SUBSCRIBE % '{"channel":"ticker","symbol":""}',
    SUBSCRIBE % '{"channel":"ticker","symbol":"../../etc/passwd"}',
    SUBSCRIBE % ('{"channel":"ticker","symbol":"' + "x" * 9000 + '"}'), TICKER % '"snapshot":1',
    TICKER % '"snapshot":"true"', TICKER % '"snapshot":null', TICKER % '"event_trigger":9',
    TICKER % '"event_trigger":1', SUBSCRIBE % '{"channel":"book","symbol":"BTC/USD","depth":11}',
    SUBSCRIBE % '{"channel":"book","symbol":"BTC/USD","depth":-10}',
    SUBSCRIBE % '{"channel":"book","symbol":"BTC/USD","depth":"10"}',
    SUBSCRIBE % '{"channel":"book","symbol":"BTC/USD","depth":true}',
    SUBSCRIBE % '{"channel":"book","symbol":"BTC/USD","depth":10.0}',
    SUBSCRIBE % '{"channel":"ohlc","symbol":"BTC/USD","interval":2}',
    SUBSCRIBE % '{"channel":"ohlc","symbol":"BTC/USD","interval":0}',
    '{"method":"unsubscribe","params":{"channel":"ticker"}}',
    '{"method":"unsubscribe","params":{"channel":"ticker","symbol":"BTC/USD"}}',
    '{"method":"unsubscribe","params":{"channel":"executions"}}',
    '{"method":"unsubscribe","params":{"channel":"instrument"}}', '{"method":"add_order"}',
    '{"method":"add_order","params":{}}', ORDER % '"order_qty":1', ORDER % '"limit_price":1',
    ORDER % '"order_qty":"1","limit_price":1', ORDER % '"order_qty":true,"limit_price":1',
    ORDER % '"order_qty":"Infinity","limit_price":1', ORDER % '"order_qty":1,"limit_price":"-Infinity"',
    ORDER % '"order_qty":"sNaN","limit_price":1', ORDER % '"order_qty":"NaN","limit_price":1',
    ORDER % '"order_qty":"1_0","limit_price":1', ORDER % '"order_qty":"1e999999999","limit_price":1',
    ORDER % '"order_qty":"1e20000","limit_price":1', ORDER % '"order_qty":0,"limit_price":1',
    ORDER % '"order_qty":-1,"limit_price":1', ORDER % '"order_qty":1,"limit_price":-1',
    ORDER % '"order_qty":1,"limit_price":0', ORDER % '"order_qty":1e29,"limit_price":1',
    ORDER % '"order_qty":1e-29,"limit_price":1',
    ORDER % '"order_qty":9223372036854775807,"limit_price":9223372036854775807',
    ORDER % '"order_qty":1,"limit_price":1e-9', ORDER % '"order_qty":1,"limit_price":1,"cl_ord_id":""',
    ORDER % '"order_qty":1,"limit_price":1,"cl_ord_id":"a b"',
    ORDER % '"order_qty":1,"limit_price":1,"cl_ord_id":"\\u0000"',
    ORDER % ('"order_qty":1,"limit_price":1,"cl_ord_id":"' + "a" * 37 + '"'),
    ORDER % '"order_qty":1,"limit_price":1,"cl_ord_id":7',
    ORDER % '"order_qty":1,"limit_price":1,"time_in_force":"never"', '{"method":"cancel_order"}',
    '{"method":"cancel_order","params":{"order_id":[]}}', '{"method":"cancel_order","params":{"order_id":"O1"}}',
    '{"method":"cancel_order","params":{"order_id":["O1"]}}',
    '{"method":"cancel_order","params":{"cl_ord_id":["\'; drop table"]}}',
]  # fmt: skip


async def answers(peer: Peer, text: str) -> list[dict[str, Any]]:
    """Send a text and return the replies to it: what comes before the answer to a request behind it."""
    await peer.send_frame(TEXT, text.encode())
    await trio.testing.wait_all_tasks_blocked()  # orders are answered by a task of their own
    await peer.send_request({"method": "ping", "req_id": 424242})
    replies = []
    while (reply := await peer.reply()).get("req_id") != 424242:
        replies.append(reply)
    return replies


async def test_every_malformed_request_gets_one_error_and_the_connection_lives(autojump_clock: trio.abc.Clock) -> None:
    assert len(MALFORMED) == len(set(MALFORMED)) >= 60
    wrong = {}
    async with open_house() as house:
        peer = await house.visit()
        for text in MALFORMED:
            try:
                replies = await answers(peer, text)
            except AssertionError as error:  # the connection has ended; the others deserve one that lives
                wrong[text[:300]] = str(error)
                peer = await house.visit()
                continue
            good = len(replies) == 1 and replies[0]["success"] is False and replies[0]["error"]
            if not good or len(json.dumps(replies)) > 1500:
                wrong[text[:300]] = replies
        assert house.market.broadcaster.statistics().subscriptions == 0
    assert not wrong, json.dumps(wrong, indent=1)


@pytest.mark.parametrize(
    "text",
    [
        '{"method":"nothing","req_id":7}', '{"method":"ping","params":[],"req_id":7}',
        '{"method":"subscribe","req_id":7}', ORDER.replace('"params"', '"req_id":7,"params"') % '"order_qty":true',
    ],
)  # fmt: skip
async def test_an_error_says_which_request_it_is_about(text: str, autojump_clock: trio.abc.Clock) -> None:
    async with open_house() as house:
        peer = await house.visit()
        (reply,) = await answers(peer, text)
        assert (reply["method"], reply["req_id"]) == (json.loads(text)["method"], 7)


VALID = [
    '{"method":"ping","req_id":1}',
    '{"method":"subscribe","params":{"channel":"ticker","symbol":["BTC/USD","ETH/USD"],"snapshot":true},"req_id":2}',
    '{"method":"subscribe","params":{"channel":"book","symbol":["BTC/USD"],"depth":25},"req_id":3}',
    '{"method":"unsubscribe","params":{"channel":"ticker","symbol":["BTC/USD"],"event_trigger":"bbo"},"req_id":4}',
    '{"method":"add_order","params":{"order_type":"limit","side":"buy","order_qty":0.01,"symbol":"BTC/USD",'
    '"limit_price":30000.0,"cl_ord_id":"my-1"},"req_id":42}',
    '{"method":"cancel_order","params":{"cl_ord_id":["my-1"]},"req_id":43}',
    '{"method":"subscribe","params":{"channel":"executions","snapshot":true},"req_id":5}',
]
ALPHABET = '{}[]":,.\\0123456789eE+-truefalsn \t\n\0\x7fé€\U0001f600"'
TOKENS = ["null", "true", "-1", "1e400", "NaN", "{}", "[]", '""', "9" * 30, '"\\ud800"', "1e-99999999999999999999"]


def mutated(chance: random.Random) -> str:
    """Return a valid request with one to four things changed."""
    text = chance.choice(VALID)
    for _ in range(chance.randint(1, 4)):
        a = chance.randrange(len(text) + 1)
        b = min(len(text), a + chance.choice((0, 0, 1, 1, 2, 9, 40)))
        new = chance.choice(
            ("", chance.choice(ALPHABET), chance.choice(TOKENS), text[a:b] * 2, chance.choice(VALID)[a:b])
        )
        text = text[:a] + new + text[b:]
    return text


async def test_2_000_mutations_of_requests_are_all_answered(
    autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(2026)
    unanswered = []
    async with open_house() as house:
        async with witness(house, caplog):
            peer = await house.visit()
            for _ in range(2000):
                text = mutated(chance)
                try:
                    if not await answers(peer, text):
                        unanswered.append(text)
                except AssertionError as error:
                    unanswered.append(f"{error}: {text}")
                    peer = await house.visit()
            peer.leave()
            await trio.testing.wait_all_tasks_blocked()
        assert unanswered == []
        assert "defect" not in house.server.statistics().ended


async def test_noise_instead_of_frames_ends_in_a_close_frame(
    autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """RSV bits, opcodes, masks and lengths at random: who is cut off is told why."""
    chance = random.Random(6455)
    told, codes = 0, set()
    async with open_house() as house, witness(house, caplog):
        for _ in range(300):
            peer = await house.visit()
            await send_until_refused(peer, chance.randbytes(chance.randint(2, 60)))
            peer.stream._socket.shutdown(socket.SHUT_WR)
            frames = await peer.rest()
            codes.add(frames[-1].close_code if frames else None)
            told += bool(frames)
            peer.leave()
        await trio.testing.wait_all_tasks_blocked()
    assert codes - {None} <= {1002, 1007, 1008, 1009}
    assert told >= 290  # the rest is the beginning of a frame that never ends


# The process as a whole


async def stay(peer: Peer, ready: trio.Event, farewells: list[tuple[str, int | None]]) -> None:
    """Be a client until the server says goodbye."""
    await peer.shake_hands()
    await peer.message()
    if len(farewells) % 2:
        await peer.send_request({"method": "subscribe", "params": {"channel": "ticker", "symbol": ["BTC/USD"]}})
    ready.set()
    status: dict[str, Any] = {}
    while (frame := await peer.frame()) and frame.opcode != CLOSE:
        status = json.loads(frame.payload) if b'"status"' in frame.payload else status
    assert frame is not None
    await peer.send_frame(CLOSE, frame.payload)
    assert await peer.rest() == []
    farewells.append((status["data"][0]["system"], frame.close_code))
    peer.leave()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("number", "clients", "stubborn"), [(signal.SIGTERM, 200, 3), (signal.SIGINT, 10, 0)])
async def test_a_signal_tells_every_client_and_ends_the_process(
    number: signal.Signals, clients: int, stubborn: int
) -> None:
    """Also if there are clients that are silent, have sent half a head, or do not answer the Close."""
    farewells: list[tuple[str, int | None]] = []
    with service("--rate", "200") as served:
        still = [dial_tcp(served.port) for _ in range(stubborn)]
        for peer, head in zip(still, (b"", request_head()[:30], request_head()), strict=False):
            await peer.send(head)
        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                ready = trio.Event()
                nursery.start_soon(stay, dial_tcp(served.port), ready, farewells)
                await ready.wait()
            served.process.send_signal(number)
            code, stderr = await trio.to_thread.run_sync(served.finish)
        if still:
            await still[2].shake_hands(b"")
            assert await still[2].farewell() == 1001
        for peer in still:
            peer.leave()
    assert farewells == [("maintenance", 1001)] * clients
    assert (code, "Traceback" in stderr) == (0, False)


async def test_what_waits_for_its_interval_is_told_before_a_stop() -> None:
    with service("--rate", "2000") as served:
        peer = dial_tcp(served.port)
        await peer.shake_hands(request_head(extra=[f"Sec-WebSocket-Protocol: {NATIVE}"]))
        ack = await peer.ask(
            {"method": "subscribe", "params": {"channel": "trade", "symbol": ["BTC/USD"], "interval_ms": 60_000}}
        )
        first = await peer.message_of("trade")
        await trio.sleep(0.5)
        served.process.send_signal(signal.SIGTERM)
        last = await peer.message_of("trade")
        assert ack["success"]
        assert last["pos"]["prev"] == first["pos"]["last"]
        assert last["pos"]["n"] == len(last["data"]) > 5
        while (await peer.message())["channel"] != "status":
            pass
        peer.leave()
        assert served.finish()[0] == 0


async def test_running_out_of_files_is_survived() -> None:
    with service("--rate", "3000", limit_files=64) as served:
        healthy = dial_tcp(served.port)
        await healthy.shake_hands()
        await healthy.subscribe("trade")
        crowd = [dial_tcp(served.port) for _ in range(100)]
        for _ in range(20):
            await healthy.message_of("trade")
        for peer in crowd:
            peer.leave()
        with trio.fail_after(5):
            late = dial_tcp(served.port)
            await late.shake_hands()
            await late.message()
            await healthy.ask({"method": "ping"})
        for peer in (healthy, late):
            peer.leave()
        served.process.send_signal(signal.SIGTERM)
        code, stderr = served.finish()
    assert code == 0
    assert os.strerror(errno.EMFILE) in stderr


def test_a_port_in_use_is_one_line_and_exit_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, "serve", "--port", port],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ticker serve: port {port} on 127.0.0.1 is in use: ")
    assert "Traceback" not in done.stderr
