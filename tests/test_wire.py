"""How requests are read, and what is refused."""

import json
import time
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ticker.errors import Code, RequestError
from ticker.orders.params import AddOrderParams, BatchAddParams
from ticker.wire import (
    UNSET,
    MalformedRequestError,
    ReplayAction,
    Reply,
    Request,
    SubscribeParams,
    _depth_over,
    decode_request,
    encode,
    envelope_of,
    instant_ns,
    params_of,
    subscription_of,
)


def refused(text: str) -> Code:
    with pytest.raises(RequestError) as error:
        decode_request(text)
    return error.value.code


def test_a_request_is_read_and_unknown_keys_are_ignored():
    request = decode_request(
        '{"method":"subscribe","future":[{}],"params":{"channel":"ticker","symbol":"A/B","x":1},"req_id":7}'
    )
    params = params_of(request, SubscribeParams)
    assert (request.method, request.req_id, params.channel, params.symbols) == ("subscribe", 7, "ticker", ["A/B"])


@pytest.mark.parametrize(
    "text",
    [
        "", "nope", '{"method":"ping"', '{"method":NaN}', '{"a":Infinity,"method":"ping"}', "[" * 16000,
        '{"method":"ping","method":"ping"}', '{"method":"ping","req_id":18446744073709551616}',
        '{"method":"ping","req_id":' + "9" * 5000 + "}", '{"method":"ping","x":1e400}', '{"method":"ping","x":1e-400}',
        '{"method":"\\ud800"}', '{"method":"ping","x":["\\udfff"]}', '{"method":"ping","x":' + "[" * 9 + "]" * 9 + "}",
    ],
)  # fmt: skip
def test_json_that_is_not_accepted_is_refused_as_such(text):
    assert refused(text) is Code.INVALID_JSON


@pytest.mark.parametrize("number", ["1e300", "99999999999999999999", "NaN"])
def test_a_request_with_a_number_out_of_range_is_still_answered_as_itself(number):
    with pytest.raises(MalformedRequestError, match="invalid JSON") as error:
        decode_request('{"method":"add_order","params":{"limit_price":' + number + '},"req_id":4}')
    assert (error.value.request.method, error.value.request.req_id, error.value.code) == (
        "add_order", 4, Code.INVALID_JSON,
    )  # fmt: skip


@pytest.mark.parametrize("rest", ["", ',"x":NaN', ',"x":1e400', ',"x":1,"x":1'])
def test_half_a_surrogate_pair_in_a_method_is_not_sent_back(rest):
    """With NaN behind it the reply could not be encoded, and the connection was closed with 1011."""
    with pytest.raises(MalformedRequestError) as error:
        decode_request('{"method":"a\\ud800","req_id":5' + rest + "}")
    assert error.value.request == Request("a", req_id=5)
    encode(Reply(method=error.value.request.method, error=error.value.text, time_in="", time_out=""))


@pytest.mark.parametrize(
    ("text", "method", "req_id"),
    [
        ('{"method":"add_order","params":{"x":[1.5,"[",{}]},"req_id":4,"future":[[]]}', "add_order", 4),
        ('{"params":{},"method":"ping"}', "ping", UNSET), ("{}", "", UNSET), ("", "", UNSET), ("[1]", "", UNSET),
        ('{"method":1,"req_id":1}', "", UNSET), ('{"method":"ping","req_id":true}', "", UNSET),
        ('{"method":"\\ud800"}', "", UNSET), ('{"method":"ping","x":NaN}', "", UNSET),
        ('{"method":"ping","x":' + "[" * 16_000 + "]" * 16_000 + "}", "", UNSET),
        ('{"method":"ping","req_id":' + "9" * 5000 + "}", "", UNSET),
    ],
)  # fmt: skip
def test_of_a_request_that_is_refused_unread_the_envelope_is_told(text, method, req_id):
    assert envelope_of(text) == Request(method, req_id=req_id)


@given(st.text())
def test_no_text_is_too_odd_for_an_envelope(text):
    assert envelope_of(text) == Request("")


@pytest.mark.parametrize(
    "text",
    ["1", "null", "[]", '"method"', "{}", '{"method":1}', '{"method":"ping","req_id":"7"}',
     '{"method":"ping","req_id":true}', '{"method":"ping","req_id":1.0}', '{"method":"ping","params":[]}'],
)  # fmt: skip
def test_json_that_is_not_a_request_is_refused_as_such(text):
    assert refused(text) is Code.INVALID_REQUEST


def test_brackets_in_strings_do_not_count_as_depth():
    assert decode_request(json.dumps({"method": "[" * 100 + '\\"{' * 100})).method.startswith("[[")


def depth_of(text: str) -> int:
    """How deep brackets nest, a character at a time."""
    depth = deepest = 0
    in_string = escaped = False
    for char in text:
        if in_string:
            in_string, escaped = escaped or char != '"', char == "\\" and not escaped
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth = max(0, depth - 1)
    return deepest


@given(st.text('[]{}"\\a\n'), st.integers(1, 9))
@example('[["\\', 1)
@example('[["\\\n"]]', 1)
@example("]]]" + "[" * 9, 8)
@example("[" * 8 + "]" * 8 + "[" * 9 + "]" * 9, 8)
def test_depth_is_what_counting_brackets_says(text, limit):
    assert _depth_over(text, limit) == (depth_of(text) > limit)


@pytest.mark.parametrize("part", ["[],", "1,", '"' + "x" * 50 + '",'])
def test_how_deep_a_message_is_takes_little_time(part):
    """A character at a time it took 1.4 ms, and one connection that may send 8 MB/s most of the event loop."""
    text = "[" + "[]," * 9 + part * (16_000 // len(part)) + "0]"
    took = []
    for _ in range(5):
        began = time.perf_counter()
        assert not _depth_over(text, 8)
        took.append(time.perf_counter() - began)
    counted = time.perf_counter()
    depth_of(text)
    assert min(took) < (time.perf_counter() - counted) / 4


NATIVE = {
    "interval_ms": "250", "mode": 1, "on_slow": [], "numbers": 2, "encoding": {}, "resume": 1, "session": 5,
}  # fmt: skip


def test_native_keys_of_a_plain_client_are_unknown_whatever_they_hold():
    request = Request("subscribe", {"channel": "ticker", "symbol": "A/B", **NATIVE})
    assert subscription_of(request, native=False) == SubscribeParams("ticker", "A/B")
    assert subscription_of(Request("subscribe", {"channel": "ticker", "interval_ms": 5}), native=True).interval_ms == 5
    assert set(NATIVE) == set(SubscribeParams.NATIVE)
    for key, value in NATIVE.items():
        with pytest.raises(RequestError, match=key):
            subscription_of(Request("subscribe", {"channel": "ticker", key: value}), native=True)
    with pytest.raises(RequestError, match="channel"):
        subscription_of(Request("subscribe"), native=False)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"channel": 1}, "channel"), ({}, "channel"), ({"channel": "book", "depth": True}, "depth"),
        ({"channel": "book", "depth": "10"}, "depth"), ({"channel": "ticker", "symbol": [1]}, "symbol"),
        ({"channel": "ticker", "event_trigger": 1}, "event_trigger"),
        ({"channel": "ticker", "snapshot": 1}, "snapshot"),
    ],
)  # fmt: skip
def test_a_wrong_parameter_is_refused_by_name(params, field):
    request = decode_request(json.dumps({"method": "subscribe", "params": params}))
    with pytest.raises(RequestError, match=field) as error:
        params_of(request, SubscribeParams)
    assert error.value.code is Code.INVALID_FIELD


@pytest.mark.parametrize(
    ("kind", "params", "ending"),
    [
        (AddOrderParams, {"order_type": "limit", "side": "by"}, "at `$.side`, which is one of buy, sell"),
        (
            AddOrderParams,
            {"order_type": "limit", "side": "buy", "symbol": "A/B", "order_qty": 1, "triggers": {"reference": "x"}},
            "at `$.triggers.reference`, which is one of last",
        ),
        (
            BatchAddParams,
            {
                "symbol": "A/B",
                "orders": [{"order_type": "limit", "order_qty": 1, "side": side} for side in ("buy", "")],
            },
            "at `$.orders[1].side`, which is one of buy, sell",
        ),
        (ReplayAction, {"action": "stopp"}, "which is one of pause, resume, seek, speed, step, stop"),
        (AddOrderParams, {"order_type": "limit", "side": "buy", "symbol": 1}, "got `int` - at `$.symbol`"),
        (AddOrderParams, {}, "missing required field `order_type`"),
    ],
)
def test_a_wrong_word_is_answered_with_those_that_are_allowed(kind, params, ending):
    with pytest.raises(RequestError) as error:
        params_of(Request("m", params), kind)
    assert error.value.text.endswith(ending)


@given(st.decimals(min_value="0.00000001", max_value="1000000000", places=8))
def test_order_numbers_are_read_exactly_as_written(value):
    text = f'{{"method":"add_order","params":{{"order_type":"limit","side":"buy","symbol":"A/B","order_qty":{value}}}}}'
    assert params_of(decode_request(text), AddOrderParams).order_qty == Decimal(str(value))


def test_a_number_in_quotes_is_no_number():
    text = '{"method":"add_order","params":{"order_type":"market","side":"buy","symbol":"A/B","order_qty":"1"}}'
    with pytest.raises(RequestError, match="order_qty"):
        params_of(decode_request(text), AddOrderParams)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    try:
        decode_request(text)
    except RequestError as error:
        assert len(error.text) <= 400  # noqa: PT017 - one of two outcomes


@pytest.mark.parametrize(
    ("value", "ns"),
    [
        ("2024-08-08T23:56:00.123456789Z", 1_723_161_360_123_456_789),
        ("2024-08-09T01:56:00.000000001+02:00", 1_723_161_360_000_000_001),
        (1_723_161_360_123_456_789, 1_723_161_360_123_456_789),
        ("+1.5s", 1_500_000_007),
    ],
)
def test_an_instant_is_read_to_the_nanosecond(value, ns):
    assert instant_ns(value, "to", 7) == ns


@pytest.mark.parametrize("value", ["", "now", "2024-02-30T00:00:00Z", "2300-01-01T00:00:00Z", "x" * 10_000])
def test_what_is_no_instant_is_refused_by_its_name(value):
    with pytest.raises(RequestError) as caught:
        instant_ns(value, "to", 0)
    assert (caught.value.code, caught.value.field) == (Code.BAD_TIME, "to")
    assert len(caught.value.text) < 300
