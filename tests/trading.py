"""Test support: an exchange over a scripted market, and orders in a few words."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from feeds.records import BUY, SELL, Batch
from feeds.tape import Tape as TapeVenue
from feeds.venue import Venue
from tests.scripted import BTC, INSTRUMENTS, Tape
from ticker.errors import Code, RequestError
from ticker.history import History, HistoryOptions
from ticker.orders import events
from ticker.orders.accounts import AccountOptions, Accounts, Limits
from ticker.orders.exchange import Change, Exchange, Wanted
from ticker.orders.ledger import DIGITS, Ledger
from ticker.orders.order import Order, Report, Terms

ONE = 10**8  # lots of 1 BTC


def accounts(limits: Limits | None = None, *, fees: tuple[float, float] = (0.0, 0.0)) -> Accounts:
    """Accounts a and b, 10 BTC and 1,000 USD each; b has no limits."""
    balances = {"BTC": "10", "USD": "1000", "ETH": "10", "USDT": "1000"}
    maker, taker = fees
    common = {"balances": balances, "maker_bps": maker, "taker_bps": taker}
    return Accounts({"a": AccountOptions(**common, limits=limits or Limits()), "b": AccountOptions(**common)})


class Pit:
    """An exchange and its market: bids at 99.0 and 98.0, offers at 101.0 and 102.0, one BTC each.

    Attributes:
        journal: Every event so far, encoded, as a journal would hold them.
        reports: Every report so far.
    """

    def __init__(self, who: Accounts | None = None, venue: Venue | None = None) -> None:
        self.history, self.tape = History(INSTRUMENTS, HistoryOptions()), Tape()
        self.accounts = who or accounts()
        self.venue = venue or TapeVenue(self.history)
        self.exchange = Exchange(self.history, self.venue, self.accounts, Ledger())
        self.journal: list[bytes] = []
        self.reports: list[Report] = []
        self._drain()
        self.exchange.new_epoch()
        self.book((BUY, 990, ONE), (BUY, 980, ONE), (SELL, 1010, ONE), (SELL, 1020, ONE), snapshot=True)

    def restart(self) -> None:
        """End as kill -9 does, and begin again with what the journal holds, in a market of which nothing is known."""
        ledger = Ledger()
        for payload in self.journal:
            ledger.apply(events.decode(payload))
        self.history = History(INSTRUMENTS, HistoryOptions())
        self.venue = TapeVenue(self.history)
        self.exchange = Exchange(self.history, self.venue, self.accounts, ledger)
        self.exchange.new_epoch()

    def _drain(self) -> list[Report]:
        happened, reports = self.exchange.drain()
        self.journal += [events.encode(event) for event in happened]
        self.reports += reports
        return reports

    # The market

    def happen(self, batch: Batch) -> list[Report]:
        self.history.apply(batch, lambda event: None)
        self.exchange.moved(batch)
        return self._drain()

    def book(self, *rows: tuple[int, int, int], snapshot: bool = False) -> list[Report]:
        """Levels of BTC as (side, ticks, lots)."""
        return self.happen(self.tape.levels(BTC, *rows, snapshot=snapshot))

    def trade(self, *rows: tuple[int, int, int]) -> list[Report]:
        """Trades of BTC as (aggressor, ticks, lots)."""
        return self.happen(self.tape.trades(*[(BTC, *row) for row in rows]))

    # Orders

    def place(self, side: int, qty: int, limit: int | None = None, *, account: str = "a", **more: Any) -> list[Report]:
        """Enter an order and return what is reported; it is kept as :attr:`order`."""
        idempotent = more.pop("idempotent", True)
        wanted = self.wanted(side, qty, limit, **more)
        self.order, self.duplicate = self.exchange.place(account, wanted, idempotent=idempotent)
        return self._drain()

    def place_all(self, *batch: Wanted, account: str = "a") -> list[Order]:
        """Enter several orders at once and return them."""
        placed = self.exchange.place_all(account, batch, idempotent=True)
        self._drain()
        return [order for order, _ in placed]

    @staticmethod
    def wanted(side: int, qty: int, limit: int | None = None, **more: Any) -> Wanted:
        """Terms and a digest that differs where they differ."""
        kind = more.pop("order_type", "market" if limit is None else "limit")
        terms = Terms(symbol="BTC/USD", name="BTC/USD", side=side, qty=qty, limit=limit, order_type=kind, **more)
        return Wanted(terms, str(hash(repr(terms))))

    def cancel(self, order: Order | None = None, account: str = "a") -> list[Report]:
        self.exchange.cancel(account, (order or self.order).key, "")
        return self._drain()

    def amend(self, order: Order, account: str = "a", **change: Any) -> list[Report]:
        self.exchange.amend(account, order, Change(**change))
        return self._drain()

    def refusal(self, *args: Any, **more: Any) -> Code:
        """Return why an order is refused; nothing may have changed."""
        before, head = self.exchange.ledger.snapshot(), len(self.journal)
        try:
            self.place(*args, **more)
        except RequestError as error:
            self._drain()
            assert self.exchange.ledger.snapshot() == before
            assert len(self.journal) == head
            return error.code
        raise AssertionError("it was not refused")

    def owns(self, asset: str, account: str = "a") -> Fraction:
        return Fraction(self.exchange.ledger.accounts[account].balances[asset], 10**DIGITS)

    def held(self, asset: str, account: str = "a") -> Fraction:
        return Fraction(self.exchange.ledger.accounts[account].held.get(asset, 0), 10**DIGITS)

    def position(self, account: str = "a") -> int:
        """Return the position in BTC, in lots."""
        return self.exchange.ledger.accounts[account].position("BTC/USD").qty


def types(reports: list[Report]) -> list[str]:
    return [report.exec_type for report in reports]
