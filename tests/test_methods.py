"""Order methods: what a request comes to, without a gateway around it."""

from __future__ import annotations

from typing import Any

import pytest

from feeds.records import BUY
from tests.scripted import INSTRUMENTS
from tests.test_gateway import Client
from tests.trading import Pit
from ticker.errors import Code, RequestError
from ticker.listings import Listings
from ticker.orders.methods import MAX_ANSWERS, Answer, Methods
from ticker.wire import Request


class OneAccount:
    """A desk where everybody trades on account a; a :class:`ticker.orders.methods.Desk`."""

    def account(self, caller: Any, token: Any, scope: Any) -> str:
        return "a"

    def placed(self, caller: Any, order: Any) -> None:
        """Of no interest here."""

    def cancel_after(self, account: str, timeout_s: float) -> None:
        """Of no interest here."""

    def cancel_on_disconnect(self, caller: Any, account: str, grace_s: float | None) -> None:
        """Of no interest here."""


@pytest.fixture
def pit():
    return Pit()


def ask(pit: Pit, method: str, **params: Any) -> list[Answer]:
    work = Methods(Listings(INSTRUMENTS), OneAccount()).read(Client(), Request(method, params))
    return work(pit.exchange)


def test_a_userref_that_is_named_twice_is_cancelled_once(pit):
    for userref in (7, 7, 8):
        pit.place(BUY, 1, 900, userref=userref)
    answers = ask(pit, "cancel_order", order_userref=[9, 7, 7, 9, 8])
    keys = [answer.result["order_id"][-1] if answer.error is None else answer.error.code for answer in answers]
    assert keys == [Code.UNKNOWN_ORDER, "1", "2", "3"]


def test_cancel_order_does_not_answer_for_any_number_of_orders_and_batch_cancel_takes_them(pit):
    for _ in range(MAX_ANSWERS + 1):
        pit.place(BUY, 1, 900, userref=7)
    before = pit.exchange.ledger.snapshot()
    with pytest.raises(RequestError, match="batch_cancel") as error:
        ask(pit, "cancel_order", order_userref=[7])
    assert (error.value.code, pit.exchange.ledger.snapshot()) == (Code.INVALID_FIELD, before)
    assert ask(pit, "batch_cancel", orders=[7]) == [Answer({"count": MAX_ANSWERS + 1})]


def test_a_batch_that_is_only_checked_is_checked_as_a_whole(pit):
    one = {"order_type": "limit", "side": "buy", "order_qty": 6, "limit_price": 90}
    batch = {"symbol": "BTC/USD", "orders": [one, one]}
    for validate in (True, False):
        with pytest.raises(RequestError) as error:
            ask(pit, "batch_add", **batch, validate=validate)
        assert error.value.code is Code.INSUFFICIENT_FUNDS
