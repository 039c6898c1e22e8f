"""What a request for an order may say, and what it then means."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeds.instruments import MAX_UNITS, Instrument
from feeds.records import BUY
from tests.scripted import INSTRUMENTS, START_NS
from ticker.errors import Code, RequestError
from ticker.listings import Listings
from ticker.orders.order import Terms
from ticker.orders.params import AddOrderParams, AmendParams, BatchAddParams
from ticker.orders.rules import change_of, deadline_of, instant_ns, lots, ticks, wanted_of
from ticker.wire import Request, params_of

LISTINGS = Listings(INSTRUMENTS)
LIMIT = {"order_type": "limit", "side": "buy", "symbol": "BTC/USD", "order_qty": Decimal("0.5"), "limit_price": 100}
QUARTERS = Instrument(
    symbol="ES", base="ES", quote="", price_precision=2, qty_precision=0, price_increment=25, qty_increment=2, qty_min=4
)


def terms(**params: Any) -> Terms:
    given = {field: value for field, value in {**LIMIT, **params}.items() if value is not None}
    read = params_of(Request("add_order", given), AddOrderParams)
    return wanted_of(read, read.symbol, LISTINGS.instrument(read.symbol), START_NS).terms


def test_decimals_become_ticks_and_lots():
    got = terms(limit_price=Decimal("100.1"), cl_ord_id="x")
    assert (got.symbol, got.side, got.qty, got.limit, got.cl_ord_id) == ("BTC/USD", BUY, 50_000_000, 1001, "x")


def test_an_order_keeps_the_name_that_it_came_under():
    got = terms(symbol="ETH/USDT")
    assert (got.symbol, got.name) == ("ETHUSDT", "ETH/USDT")


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"limit_price": None}, "limit_price"),
        ({"order_type": "market"}, "limit_price"),
        ({"order_type": "stop-loss"}, "limit_price"),
        ({"order_type": "stop-loss", "limit_price": None}, "triggers"),
        ({"triggers": {"price": 1}}, "triggers"),
        ({"display_qty": Decimal("0.1")}, "display_qty"),
        ({"order_type": "iceberg"}, "display_qty"),
        ({"order_type": "iceberg", "display_qty": Decimal("0.6")}, "display_qty"),
        ({"time_in_force": "gtd"}, "expire_time"),
        ({"time_in_force": "gtd", "expire_time": "2020-01-01T00:00:00Z"}, "expire_time"),
        ({"time_in_force": "gtd", "expire_time": "2026-01-03T00:00:00"}, "expire_time"),
        ({"time_in_force": "gtd", "expire_time": "9999-01-03T00:00:00Z"}, "expire_time"),
        ({"expire_time": "2026-01-03T00:00:00Z"}, "expire_time"),
        ({"post_only": True, "time_in_force": "ioc"}, "post_only"),
        ({"post_only": True, "order_type": "market", "limit_price": None}, "post_only"),
        ({"cl_ord_id": "a b"}, "cl_ord_id"),
        ({"cl_ord_id": "x" * 37}, "cl_ord_id"),
        ({"margin": True}, "margin"),
        ({"conditional": {}}, "conditional"),
        ({"cash_order_qty": 5}, "cash_order_qty"),
        ({"order_qty": Decimal("0.000000001")}, "order_qty"),
        ({"order_qty": Decimal("1e20")}, "order_qty"),
        ({"limit_price": Decimal("100.15")}, "limit_price"),
        ({"limit_price": Decimal(-1)}, "limit_price"),
    ],
)
def test_what_makes_no_sense_is_refused_by_field(params, field):
    with pytest.raises(RequestError) as error:
        terms(**params)
    assert (error.value.code, error.value.field) == (Code.INVALID_ORDER, field)


def test_increments_and_the_smallest_order():
    assert (ticks(Decimal("4500.25"), QUARTERS, ""), lots(Decimal(6), QUARTERS, "")) == (450_025, 6)
    for read, value in ((ticks, "4500.30"), (lots, "5"), (lots, "2")):
        with pytest.raises(RequestError):
            read(Decimal(value), QUARTERS, "")


@given(st.decimals(allow_nan=True, allow_infinity=True))
def test_any_number_is_a_price_or_refused(value):
    try:
        assert 0 < ticks(value, INSTRUMENTS[0], "limit_price") <= MAX_UNITS
    except RequestError as error:
        assert error.field == "limit_price"  # noqa: PT017 - one of two outcomes


@pytest.mark.parametrize("value", ["30000." + "0" * 28 + "1", "1." + "0" * 9000 + "1", "1e-999999999999", "0.05"])
def test_a_number_of_any_length_is_compared_in_full(value):
    with pytest.raises(RequestError, match="multiple"):
        ticks(Decimal(value), INSTRUMENTS[0], "limit_price")


@pytest.mark.parametrize(
    ("params", "place", "field"),
    [
        ({"order_qty": "1"}, "order_qty", "order_qty"),
        ({"limit_price": "NaN"}, "limit_price", "limit_price"),
        ({"triggers": {"price": "96"}}, "triggers.price", "triggers"),
    ],
)
def test_numbers_are_no_text_also_where_they_are_within_another_parameter(params, place, field):
    order = {**LIMIT, **params}
    batch = {"symbol": "BTC/USD", "orders": [LIMIT, order]}
    for asked, kind, where, named in (
        (order, AddOrderParams, place, field),
        (batch, BatchAddParams, f"orders[...].{place}", "orders"),
    ):
        with pytest.raises(RequestError) as error:
            params_of(Request("an_order", asked), kind)
        assert error.value.text == f"an_order: Expected a number, got `str` - at `$.{where}`"
        assert (error.value.code, error.value.field) == (Code.INVALID_FIELD, named)


@pytest.mark.parametrize("orders", [None, 5, "1", [1, 2], [{}, {}], [{"triggers": 5}, {"triggers": [1]}]])
def test_a_batch_of_anything_else_is_refused(orders):
    with pytest.raises(RequestError):
        params_of(Request("batch_add", {"symbol": "BTC/USD", "orders": orders}), BatchAddParams)


def test_the_same_order_has_the_same_digest_however_it_is_written():
    def body(**params: Any) -> str:
        read = params_of(Request("add_order", {**LIMIT, "cl_ord_id": "x", **params}), AddOrderParams)
        return wanted_of(read, read.symbol, LISTINGS.instrument("BTC/USD"), START_NS).body

    assert body() == body(limit_price=Decimal("100.0"), ttl_ms=500, token="t")
    assert len({body(), body(limit_price=101), body(post_only=True), body(side="sell")}) == 4


def test_an_amendment_has_to_change_something():
    def change(**params: Any) -> Any:
        return change_of(params_of(Request("amend_order", params), AmendParams), INSTRUMENTS[0])

    assert change(limit_price=Decimal("100.1")).limit == 1001
    with pytest.raises(RequestError, match="nothing"):
        change(post_only=True)


def test_deadlines():
    wall = START_NS
    assert deadline_of(*UNSET_PAIR, wall) == wall + 5 * 10**9
    assert deadline_of(UNSET_PAIR[0], 100, wall) == wall + 10**8
    assert deadline_of("2026-01-02T09:04:32Z", UNSET_PAIR[1], wall) == wall + 10**9
    for text in ("2026-01-02T09:04:31.4Z", "2026-01-02T09:05:32Z", "soon"):
        with pytest.raises(RequestError):
            deadline_of(text, UNSET_PAIR[1], wall)


def test_instants_have_an_offset_and_microseconds():
    assert instant_ns("2026-01-02T10:04:31.000001+01:00", "") == START_NS + 1000


UNSET_PAIR = AmendParams().deadline, AmendParams().ttl_ms
