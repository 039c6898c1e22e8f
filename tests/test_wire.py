"""How requests are read, and what is refused."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ticker.errors import Code, RequestError
from ticker.orders.params import AddOrderParams, BatchAddParams
from ticker.wire import (
    MalformedRequestError,
    ReplayAction,
    Request,
    SubscribeParams,
    decode_request,
    instant_ns,
    params_of,
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


@pytest.mark.parametrize(
    "text",
    ["1", "null", "[]", '"method"', "{}", '{"method":1}', '{"method":"ping","req_id":"7"}',
     '{"method":"ping","req_id":true}', '{"method":"ping","req_id":1.0}', '{"method":"ping","params":[]}'],
)  # fmt: skip
def test_json_that_is_not_a_request_is_refused_as_such(text):
    assert refused(text) is Code.INVALID_REQUEST


def test_brackets_in_strings_do_not_count_as_depth():
    assert decode_request(json.dumps({"method": "[" * 100 + '\\"{' * 100})).method.startswith("[[")


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
