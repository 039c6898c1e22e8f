"""``ticker watch``: the tickers of a server as a live table in the terminal, or as lines in a pipe.

:class:`Board` takes messages in and :func:`render` draws it; both are plain functions of what they are given, with the
time as an argument. Only :func:`watch` knows the terminal, the clock and the connection. What is drawn is the newest
state at most ten times a second, however many messages come.

Rows show what the server says: numbers with the decimals that it printed, and its time as the time of the market.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import IO, Any, Final

import msgspec
import trio
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ticker.client.connection import (
    ConnectionLost,
    ConnectionRefused,
    Message,
    distinct,
    open_connection,
    picking_apart,
)
from ticker.client.remote import Remote
from ticker.client.stream import StateChange, Subscription, open_stream
from ticker.deck import Deck, status_line
from ticker.errors import ConfigError
from ticker.keys import single_keys

REFRESH_S: Final = 0.1
#: How many names an error lists.
SHOWN_NAMES: Final = 20
#: Ages are shown dimmed from here on: the price may not be the market's any more.
OLD_S: Final = 5.0
#: Market time that goes back by more than this has been set back.
REWOUND: Final = timedelta(seconds=5)
#: Both triggers: a recording of trades alone never has a quote, one of quotes alone never a trade.
TRIGGERS: Final = ("bbo", "trades")

#: Heading, key of the cell, and rank: a terminal that is too narrow leaves out the highest rank first.
COLUMNS: Final[tuple[tuple[str, str, int], ...]] = (
    ("symbol", "symbol", 0),
    ("bid", "bid", 2),
    ("bid qty", "bid_qty", 6),
    ("ask", "ask", 2),
    ("ask qty", "ask_qty", 6),
    ("last", "last", 1),
    ("change", "change_pct", 3),
    ("volume", "volume", 7),
    ("upd/s", "rate", 5),
    ("age", "age", 4),
)
#: Lines of a screen that are not rows: header, headings, footer.
OVERHEAD_LINES: Final = 3


class Rate:
    """Events per second, as an average that forgets with a time constant of two seconds. Time is the caller's."""

    TAU_S: Final = 2.0

    def __init__(self) -> None:
        self._rate = 0.0
        self._at = 0.0

    def count(self, now: float) -> None:
        """Count one event at ``now``, in seconds."""
        self._rate = self.at(now) + 1 / self.TAU_S
        self._at = now

    def at(self, now: float) -> float:
        """Return events per second at ``now``."""
        return self._rate * math.exp((self._at - now) / self.TAU_S)


class Row:
    """What is known of one symbol.

    Attributes:
        values: The last row that the server sent; empty before the first.
        direction: Of the last change of the last price: +1, -1, or 0 before there was any.
        rate: Changes received per second.
        received_at: When the last change came, in seconds of the caller's clock.
    """

    def __init__(self) -> None:
        self.values: Message = {}
        self.direction = 0
        self.rate = Rate()
        self.received_at = -math.inf

    def update(self, values: Message, now: float) -> bool:
        """Take in a row; return whether it says anything new."""
        if values == self.values:
            return False
        before, last = self.values.get("last"), values.get("last")
        if before is not None and last is not None and last != before:
            self.direction = 1 if last > before else -1
        self.values = values
        self.rate.count(now)
        self.received_at = now
        return True


class Board:
    """Everything that the table shows.

    Args:
        url: Where it comes from.
        symbols: The rows, in their order.

    Attributes:
        rows: By symbol.
        mode: "sim" or "replay", as the server says.
        market_time: RFC 3339: the time of the newest event; empty before the first. A tape that loops sets it back.
        connection: The last that was heard of the connection.
        rate: Messages per second, of any kind.
        widths: The widest cell so far of each column, so that columns never shrink.
        deck: The controls, if the server replays and there are any.
    """

    def __init__(self, url: str, symbols: Iterable[str]) -> None:
        self.url = url
        self.rows = {symbol: Row() for symbol in symbols}
        self.mode = ""
        self.market_time = ""
        self.connection = StateChange(state="connecting")
        self.rate = Rate()
        self.widths = {key: len(heading) for heading, key, _ in COLUMNS}
        self.deck: Deck | None = None

    def apply(self, item: Message | StateChange, now: float) -> list[Message]:
        """Take in an item of a stream; return the ticker rows in it that say something new.

        Raises:
            ConfigError: It is not as the protocol has it.
        """
        if isinstance(item, StateChange):
            self.connection = item
            return []
        self.rate.count(now)
        try:
            with picking_apart(self.url):
                return self._take(item, now)
        except ConnectionLost as error:
            raise ConfigError(str(error)) from None

    def _take(self, item: Message, now: float) -> list[Message]:
        if item.get("channel") == "status":
            self.mode = str(item["data"][0].get("mode", ""))
        if item.get("channel") != "ticker":
            return []
        msgspec.convert(item["data"], list[_Ticker])
        fresh = [values for values in item["data"] if self._update(values, now)]
        for values in fresh:
            # A snapshot may be of a symbol that has been quiet for hours; an update has just happened.
            if values["timestamp"] > self.market_time or (
                item["type"] == "update" and _is_rewound(self.market_time, values["timestamp"])
            ):
                self.market_time = values["timestamp"]
        return fresh

    def _update(self, values: Message, now: float) -> bool:
        row = self.rows.get(values["symbol"])
        return row is not None and row.update(values, now)


class _Ticker(msgspec.Struct):
    """What is compared and counted with in a row; the rest is shown as it is."""

    symbol: str
    timestamp: datetime
    last: float | None = None
    change_pct: float | None = None


def _is_rewound(before: str, after: str) -> bool:
    """Whether a tape began anew, told from a venue's clock and a recorder's that are a second or two apart."""
    return datetime.fromisoformat(before) - datetime.fromisoformat(after) > REWOUND


def number(value: Any) -> str:  # noqa: ANN401 - of a JSON message
    """Return a number as the server printed it, "-" where there is none."""
    if value is None:
        return "-"
    return format(value, "f") if isinstance(value, Decimal) else str(value)


def age(seconds: float) -> str:
    """Return an age: "0.4 s", "12 s", "3 m 05 s", "2 h 10 m"; "-" for infinity."""
    if math.isinf(seconds):
        return "-"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} m {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} m"


def line(values: Message) -> str:
    """Return a ticker row as a line of words: time, symbol, then name and value by turns."""
    words = [values["timestamp"], values["symbol"]]
    for name in ("bid", "bid_qty", "ask", "ask_qty", "last", "change_pct", "volume"):
        words += [name, number(values.get(name))]
    return " ".join(words)


# Drawing

_UP, _DOWN, _HEAD, _DIM = "green", "red", "bold", "bright_black"
_SIGNS: Final = {1: ("▲", _UP), -1: ("▼", _DOWN), 0: (" ", "")}
_STATES: Final = {
    "connecting": ("○", "yellow"),
    "connected": ("●", _UP),
    "waiting": ("○", _DOWN),
    "ended": ("○", _DOWN),
}


#: Text and style of one cell.
Cell = tuple[str, str]


def render(board: Board, now: float, width: int, height: int) -> RenderableType:
    """Return the screen of a board.

    Rows are laid out here: a Rich table measures and wraps every cell, and took six times as long (43 ms for 40 rows).

    Args:
        board: What to show; its column widths grow with what is shown.
        now: Seconds of the clock by which the board was filled.
        width: Columns of the terminal.
        height: Lines of the terminal.
    """
    tape = _tape(board)
    room = max(1, height - OVERHEAD_LINES - len(tape))
    shown = [_cells(symbol, row, now) for symbol, row in list(board.rows.items())[:room]]
    headings = {key: (heading, "underline") for heading, key, _ in COLUMNS}
    for key, before in board.widths.items():
        board.widths[key] = max(before, *(cell_len(cells[key][0]) for cells in [headings, *shown]))
    columns = _that_fit(board.widths, width)
    stale = "dim" if board.connection.state != "connected" else ""
    lines = [_line(headings, columns, board.widths), *(_line(row, columns, board.widths, stale) for row in shown)]
    return Group(_header(board, now), *tape, *lines, _footer(board, len(shown)))


def _tape(board: Board) -> list[Text]:
    """Return the line about the tape, if there is one."""
    if board.deck is None or board.deck.state is None:
        return []
    return [status_line(board.deck.state, keys=board.deck.obeys)]


def _line(cells: dict[str, Cell], columns: Sequence[str], widths: dict[str, int], style: str = "") -> Text:
    """Return a line of cells: the symbol to the left, numbers to the right of their columns."""
    line = Text(style=style, no_wrap=True, overflow="crop")
    for key in columns:
        text, colour = cells[key]
        gap = " " * (widths[key] - cell_len(text))
        parts = (text, gap) if key == "symbol" else (gap, text)
        for part in parts:
            line.append(part, colour if part is text else None)
        line.append("  ")
    line.rstrip()
    return line


def _cells(symbol: str, row: Row, now: float) -> dict[str, Cell]:
    values = row.values
    sign, colour = _SIGNS[row.direction]
    seconds = now - row.received_at
    plain = {key: (number(values.get(key)), "") for key in ("bid", "bid_qty", "ask", "ask_qty", "volume")}
    return plain | {
        "symbol": (symbol, _HEAD),
        "last": (f"{number(values.get('last'))} {sign}", colour),
        "change_pct": _change(values.get("change_pct")),
        "rate": (f"{row.rate.at(now):.1f}", ""),
        "age": (age(seconds), _DIM if seconds > OLD_S else ""),
    }


def _change(percent: Any) -> Cell:  # noqa: ANN401 - of a JSON message
    if percent is None:
        return "-", ""
    return f"{percent:+.2f} %", _UP if percent > 0 else _DOWN if percent < 0 else ""


def _that_fit(widths: dict[str, int], width: int) -> list[str]:
    """Return the columns that a terminal has room for, by key; the symbol always stays."""
    columns = COLUMNS
    while len(columns) > 1 and sum(widths[key] + 2 for _, key, _ in columns) - 2 > width:
        least = max(rank for _, _, rank in columns)
        columns = tuple(column for column in columns if column[2] != least)
    return [key for _, key, _ in columns]


def _header(board: Board, now: float) -> Text:
    """Return the header, what matters most at the left: a narrow terminal cuts it at the right."""
    mark, colour = _STATES[board.connection.state]
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{mark} {_state(board.connection)}", colour)
    for part, style in (
        (board.mode.upper(), _HEAD),
        (board.market_time[:19].replace("T", " ") + " UTC" if board.market_time else "no market time yet", ""),
        (f"{board.rate.at(now):.0f} msg/s", ""),
        (board.url, _DIM),
    ):
        if part:
            text.append("  ").append(part, style)
    return text


def _state(connection: StateChange) -> str:
    return f"next try in {connection.retry_in_s:.0f} s" if connection.state == "waiting" else connection.state


def _footer(board: Board, shown: int) -> Text:
    more = len(board.rows) - shown
    parts = [f"{more} more; make the window higher or name symbols"] if more else []
    parts += [*board.connection.refused[:1], board.connection.text]
    if board.deck is not None:
        parts.append(board.deck.text)
    parts.append("Ctrl-C ends")
    return Text("  ".join(part for part in parts if part), _DIM, no_wrap=True, overflow="ellipsis")


# Running


async def watch(url: str, symbols: list[str], console: Console | None = None) -> None:
    """Show the tickers of a server until SIGINT or SIGTERM.

    Args:
        url: ``ws://HOST:PORT/v2``.
        symbols: Which; none for every pair of the server.
        console: Where; standard output by default. One that is not a terminal gets a line per update.

    Raises:
        ConfigError: The server is not there, does not have one of the symbols, or does not speak the protocol.
    """
    console = console or Console()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
            chosen = await _choose(url, symbols)
            board = Board(url, chosen)
            wishes = [Subscription("ticker", tuple(chosen), {"event_trigger": trigger}) for trigger in TRIGGERS]
            async with open_stream(url, wishes) as stream:
                if console.is_terminal and not console.is_dumb_terminal:
                    await _show(board, stream, console, Remote(url))
                else:
                    await _print(board, stream, console.file)
            nursery.cancel_scope.cancel()


async def _cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


async def _choose(url: str, symbols: list[str]) -> list[str]:
    """Return the symbols to show, all of which the server has."""
    try:
        async with open_connection(url) as connection:
            pairs = await connection.pairs()
    except (ConnectionRefused, ConnectionLost) as error:
        raise ConfigError(str(error)) from None
    offered = [pair["symbol"] for pair in pairs]
    unknown = [symbol for symbol in symbols if symbol not in offered]
    if unknown:
        more = f" and {len(offered) - SHOWN_NAMES} more" if len(offered) > SHOWN_NAMES else ""
        names = ", ".join(offered[:SHOWN_NAMES])
        raise ConfigError(f"{url} does not have {', '.join(unknown)}; it has {names}{more}")
    return list(dict.fromkeys(symbols)) or [pair["symbol"] for pair in distinct(pairs)]


async def _show(
    board: Board, stream: trio.MemoryReceiveChannel[Message | StateChange], console: Console, remote: Remote
) -> None:
    """Draw the board ten times a second; what comes in between only changes it. ``q`` ends it, as Ctrl-C does."""
    with single_keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        deck = board.deck = Deck(remote, obeys=keys is not None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_draw, board, live)
            nursery.start_soon(deck.follow)
            nursery.start_soon(_take_in, board, stream)
            if keys is None:
                await trio.sleep_forever()
            await deck.obey(keys)
            nursery.cancel_scope.cancel()


async def _take_in(board: Board, stream: trio.MemoryReceiveChannel[Message | StateChange]) -> None:
    """Fill the board; when the stream has ended for good, the reason stays on the screen."""
    async for item in stream:
        board.apply(item, trio.current_time())


async def _draw(board: Board, live: Live) -> None:
    while True:
        now = trio.current_time()
        size = live.console.size
        live.update(render(board, now, size.width, size.height), refresh=True)
        await trio.sleep(REFRESH_S)


async def _print(board: Board, stream: trio.MemoryReceiveChannel[Message | StateChange], out: IO[str]) -> None:
    """Print a line per update; states of the connection go to standard error, out of the way of a pipe."""
    try:
        async for item in stream:
            for values in board.apply(item, trio.current_time()):
                out.write(line(values) + "\n")
            if isinstance(item, StateChange) and (item.text or item.refused):
                print(f"ticker watch: {item.state}: {'; '.join([item.text, *item.refused])}", file=sys.stderr)
            if not stream.statistics().current_buffer_used:
                out.flush()
    except BrokenPipeError:
        # The reader (`head`) has left. Python would flush once more at exit and complain, so it flushes into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
