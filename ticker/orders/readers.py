"""The private channels: who reads what of which account, and what they are told.

``executions`` numbers its messages by account for good, one report each, so a client that returns says the last number
that it knows and gets exactly the rest, or a snapshot. ``balances`` and ``positions`` number theirs by subscription.
Nothing here is ever left out: a reader that takes nothing is closed by its outbox. Messages are made
here and sent by somebody else, once what they tell is on disk.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from feeds.errors import UnknownSymbolError
from feeds.records import MISSING
from ticker.errors import Code, RequestError
from ticker.history import History
from ticker.orders.client import Client
from ticker.orders.ledger import Ledger
from ticker.orders.order import Report
from ticker.orders.reports import Printer, Row, present
from ticker.wire import Message, Resume

PRIVATE_CHANNELS: Final = ("executions", "balances", "positions")
#: Those that only native clients know.
NATIVE_CHANNELS: Final = frozenset({"positions"})
#: Reports that are sent to readers who do not want every status (Kraken's ``order_status: false``).
MILESTONES: Final = frozenset({"new", "trade", "filled", "canceled", "expired"})


class PrivateMessage(Message, frozen=True, kw_only=True):
    """A message of a private channel.

    Attributes:
        sequence: Contiguous: of executions by account, of the others by subscription, from when they are sent.
        epoch: Native profile, in snapshots: what the numbers belong to.
    """

    sequence: int
    epoch: str | msgspec.UnsetType = msgspec.UNSET


class Interest(msgspec.Struct, frozen=True):
    """What a reader wants of a channel.

    Attributes:
        trades: Whether a snapshot of executions has the last fills.
        orders: Whether it has the open orders.
        every_status: Whether reports between the opening and the end of an order are sent.
        snapshot: Whether the present state of the others is sent first.
    """

    trades: bool = False
    orders: bool = True
    every_status: bool = True
    snapshot: bool = True


class Letter(NamedTuple):
    """A message on its way to a reader."""

    reader: Client
    message: PrivateMessage


class Readers:
    """Who reads the private channels.

    Args:
        history: The market's last state, by which positions are valued.

    Attributes:
        epoch: Names the numbering of executions: that of the journal.
    """

    def __init__(self, history: History) -> None:
        self.epoch = ""
        self._history = history
        self._ledger = Ledger()
        self._printer = Printer(self._ledger)
        self._readers: dict[str, dict[str, dict[Client, Interest]]] = {}  # by account and channel, where there are any
        self._channels: dict[Client, dict[str, str]] = {}
        self._sequences: dict[tuple[Client, str], int] = {}
        self._marks: dict[Client, dict[str, int]] = {}  # the prices at which readers were told positions, by symbol

    def read(self, ledger: Ledger, epoch: str) -> None:
        """Print from another ledger from now on."""
        self._ledger, self._printer, self.epoch = ledger, Printer(ledger), epoch

    def reads(self, reader: Client) -> bool:
        """Whether somebody reads anything."""
        return bool(self._channels.get(reader))

    def check(self, reader: Client, channel: str) -> None:
        """Pass if somebody may begin to read a channel.

        Raises:
            RequestError: It does already, or there is none of that name for it.
        """
        if channel in NATIVE_CHANNELS and not reader.native:
            raise RequestError(f"Channel not supported {channel}", Code.UNKNOWN_CHANNEL, field="channel")
        if channel in self._channels.get(reader, {}):
            raise RequestError("Already subscribed", Code.ALREADY_SUBSCRIBED)

    def add(self, reader: Client, account: str, channel: str, interest: Interest) -> None:
        """Tell somebody about an account from now on."""
        self._channels.setdefault(reader, {})[channel] = account
        self._readers.setdefault(account, {}).setdefault(channel, {})[reader] = interest

    def remove(self, reader: Client, channel: str) -> None:
        """Stop telling somebody about a channel.

        Raises:
            RequestError: It does not read it.
        """
        if channel not in self._channels.get(reader, {}):
            raise RequestError("Subscription Not Found", Code.NOT_SUBSCRIBED)
        self.discard(reader, channel)

    def discard(self, reader: Client, channel: str) -> None:
        """Stop telling somebody about a channel, if it reads it."""
        account = self._channels.get(reader, {}).pop(channel, None)
        if account is None:
            return
        channels = self._readers[account]
        del channels[channel][reader]
        if not any(channels.values()):
            del self._readers[account]
        self._sequences.pop((reader, channel), None)
        if channel == "positions":
            self._marks.pop(reader, None)

    def forget(self, reader: Client) -> None:
        """Stop telling somebody anything."""
        for channel in list(self._channels.get(reader, {})):
            self.discard(reader, channel)
        self._channels.pop(reader, None)

    # What a newcomer is told

    def opening(
        self, reader: Client, account: str, channel: str, interest: Interest, resume: Resume | None
    ) -> tuple[list[PrivateMessage], bool]:
        """Return what somebody who begins to read is told first, and whether that is exactly what it missed."""
        if channel == "executions" and resume is not None and resume.epoch == self.epoch:
            missed = self._ledger.recent(account, resume.after) if isinstance(resume.after, int) else None
            if missed is not None:
                return [self._executed(report, native=reader.native) for report in missed], True
        return [self._opening(reader, account, channel, interest)], False

    def _snapshot(self, reader: Client, account: str, channel: str, interest: Interest) -> list[Row]:
        ledger, ts, native = self._ledger, self._history.ts, reader.native
        if channel == "executions":
            reports = ledger.last_fills(account) if interest.trades else []
            reports = reports + (present(ledger.open_orders(account), ts) if interest.orders else [])
            return [self._printer.execution(report, native=native) for report in reports]
        if not interest.snapshot:
            return []
        state = ledger.accounts[account]
        if channel == "balances":
            return [self._printer.balance(asset, state, native=native) for asset in state.balances]
        return self._position_rows(reader, account, state.positions)

    # What everybody is told

    def tell(self, reports: list[Report]) -> list[Letter]:
        """Return what readers are told of what happened to orders, and of what that did to balances and positions."""
        reports = [report for report in reports if report.account in self._readers]
        letters = [letter for report in reports for letter in self._of_execution(report)]
        for account in dict.fromkeys(report.account for report in reports):
            own = [report for report in reports if report.account == account]
            filled = dict.fromkeys(report.terms.symbol for report in own if report.exec_type == "trade")
            letters += self._of_balances(account, filled, dict.fromkeys(report.terms.symbol for report in own))
            letters += self._of_positions(account, filled)
        return letters

    def _of_execution(self, report: Report) -> Iterator[Letter]:
        messages: dict[bool, PrivateMessage] = {}
        for reader, interest in self._readers[report.account].get("executions", {}).items():
            if interest.every_status or report.exec_type in MILESTONES:
                if reader.native not in messages:
                    messages[reader.native] = self._executed(report, native=reader.native)
                yield Letter(reader, messages[reader.native])

    def _executed(self, report: Report, *, native: bool) -> PrivateMessage:
        row = self._printer.execution(report, native=native)
        return PrivateMessage(channel="executions", type="update", data=[row], sequence=report.sequence)

    def _of_balances(self, account: str, filled: Iterable[str], touched: Iterable[str]) -> list[Letter]:
        """Native readers are also told when only what is held for open orders has changed."""
        readers, state = self._readers[account].get("balances"), self._ledger.accounts[account]
        if not readers:
            return []
        rows = {
            native: [self._printer.balance(asset, state, native=native) for asset in self._assets(symbols)]
            for native, symbols in ((False, filled), (True, touched))
        }
        return [self._update(reader, "balances", rows[reader.native]) for reader in readers if rows[reader.native]]

    def _assets(self, symbols: Iterable[str]) -> list[str]:
        listed = self._ledger.listed
        return list(dict.fromkeys(asset for s in symbols for asset in (listed[s].base, listed[s].quote)))

    def _of_positions(self, account: str, symbols: Collection[str]) -> list[Letter]:
        readers = self._readers[account].get("positions", {}) if symbols else {}
        return [self._update(reader, "positions", self._position_rows(reader, account, symbols)) for reader in readers]

    def _update(self, reader: Client, channel: str, rows: list[Row]) -> Letter:
        return Letter(reader, PrivateMessage(channel=channel, type="update", data=rows, sequence=0))

    def send(self, letter: Letter) -> None:
        """Send a letter, unless its reader has left the channel since it was written.

        What is numbered by subscription gets its number here: a letter that is dropped with its group has none.
        """
        reader, message = letter
        if message.channel not in self._channels.get(reader, {}):
            return
        if message.channel != "executions":
            number = self._sequences[reader, message.channel] = self._sequences.get((reader, message.channel), 0) + 1
            message = msgspec.structs.replace(message, sequence=number)
        reader.send(message)

    def refresh(self) -> list[Letter]:
        """Return a snapshot for every reader: what it was told may not be so."""
        return [
            Letter(reader, self._opening(reader, account, channel, interest))
            for account, channels in self._readers.items()
            for channel, readers in channels.items()
            for reader, interest in readers.items()
        ]

    def revalue(self) -> list[Letter]:
        """Return what readers of positions are told of those whose price has changed since they were told last."""
        letters: list[Letter] = []
        for account, channels in self._readers.items():
            for reader in channels.get("positions", {}):
                positions, told = self._ledger.accounts[account].positions, self._marks.get(reader, {})
                symbols = [s for s, position in positions.items() if position.qty and self._mark(s) != told.get(s)]
                if symbols:
                    letters.append(self._update(reader, "positions", self._position_rows(reader, account, symbols)))
        return letters

    def _position_rows(self, reader: Client, account: str, symbols: Iterable[str]) -> list[Row]:
        """Return what one reader is told of positions, and remember at which prices."""
        positions, ts = self._ledger.accounts[account].positions, self._history.ts
        marks = {symbol: self._mark(symbol) for symbol in symbols}
        told = self._marks.setdefault(reader, {})
        told |= {symbol: mark for symbol, mark in marks.items() if mark is not None}
        return [self._printer.position(symbol, positions[symbol], mark, ts) for symbol, mark in marks.items()]

    def _mark(self, symbol: str) -> int | None:
        try:
            instrument = self._history.instruments.id_of(symbol)
        except UnknownSymbolError:  # the journal may know positions that this market has no prices of
            return None
        last = int(self._history.day.last_px[instrument])
        return None if last == MISSING else last

    def _opening(self, reader: Client, account: str, channel: str, interest: Interest) -> PrivateMessage:
        rows = self._snapshot(reader, account, channel, interest)
        sequence = self._ledger.accounts[account].reports if channel == "executions" else 0
        epoch = self.epoch if reader.native else msgspec.UNSET
        return PrivateMessage(channel=channel, type="snapshot", data=rows, sequence=sequence, epoch=epoch)
