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
from decimal import Decimal
from typing import IO, Any, Final

import trio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ticker.client.connection import (
    ConnectionLost,
    ConnectionRefused,
    Message,
    StateChange,
    Subscription,
    distinct,
    open_connection,
    open_stream,
)
from ticker.errors import ConfigError

REFRESH_S: Final = 0.1
#: How many names an error lists.
SHOWN_NAMES: Final = 20
#: Ages are shown dimmed from here on: the price may not be the market's any more.
OLD_S: Final = 5.0
#: Both triggers: a recording of trades alone never has a quote, one of quotes alone never a trade.
TRIGGERS: Final = ("bbo", "trades")

#: Heading, key of the cell, and how dear it is in a narrow terminal: the highest number is left out first.
COLUMNS: Final = (
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
    """

    def __init__(self, url: str, symbols: Iterable[str]) -> None:
        self.url = url
        self.rows = {symbol: Row() for symbol in symbols}
        self.mode = ""
        self.market_time = ""
        self.connection = StateChange(state="connecting")
        self.rate = Rate()
        self.widths: dict[str, int] = {}

    def apply(self, item: Message | StateChange, now: float) -> list[Message]:
        """Take in an item of a stream; return the ticker rows in it that say something new."""
        if isinstance(item, StateChange):
            self.connection = item
            return []
        self.rate.count(now)
        if item.get("channel") == "status":
            self.mode = str(item["data"][0].get("mode", ""))
        if item.get("channel") != "ticker":
            return []
        fresh = [values for values in item["data"] if self._update(values, now)]
        for values in fresh:
            # An update has just happened; a snapshot may be of a symbol that has been quiet for hours.
            newer = item["type"] == "update" or values["timestamp"] > self.market_time
            self.market_time = values["timestamp"] if newer else self.market_time
        return fresh

    def _update(self, values: Message, now: float) -> bool:
        row = self.rows.get(values["symbol"])
        return row is not None and row.update(values, now)


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


def render(board: Board, now: float, width: int, height: int) -> RenderableType:
    """Return the screen of a board.

    Args:
        board: What to show; its column widths grow with what is shown.
        now: Seconds of the clock by which the board was filled.
        width: Columns of the terminal.
        height: Lines of the terminal.
    """
    room = max(1, height - OVERHEAD_LINES)
    shown = list(board.rows.items())[:room]
    cells = [_cells(symbol, row, now) for symbol, row in shown]
    return Group(_header(board, now), _table(board, cells, width), _footer(board, len(shown)))


def _cells(symbol: str, row: Row, now: float) -> dict[str, Text]:
    values = row.values
    sign, colour = _SIGNS[row.direction]
    cells = {key: Text(number(values.get(key))) for key in ("bid", "bid_qty", "ask", "ask_qty", "volume")}
    seconds = now - row.received_at
    cells["symbol"] = Text(symbol, _HEAD)
    cells["last"] = Text(f"{number(values.get('last'))} {sign}", colour)
    cells["change_pct"] = _change(values.get("change_pct"))
    cells["rate"] = Text(f"{row.rate.at(now):.1f}")
    cells["age"] = Text(age(seconds), _DIM if seconds > OLD_S else "")
    return cells


def _change(percent: Any) -> Text:  # noqa: ANN401 - of a JSON message
    if percent is None:
        return Text("-")
    return Text(f"{percent:+.2f} %", _UP if percent > 0 else _DOWN if percent < 0 else "")


def _table(board: Board, rows: Sequence[dict[str, Text]], width: int) -> Table:
    for heading, key, _ in COLUMNS:
        widest = max([len(heading), *(cells[key].cell_len for cells in rows)])
        board.widths[key] = max(widest, board.widths.get(key, 0))
    columns = _that_fit(board.widths, width)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False, header_style="underline")
    for heading, key in columns:
        justify: Any = "left" if key == "symbol" else "right"
        table.add_column(heading, justify=justify, no_wrap=True, min_width=board.widths[key])
    stale = board.connection.state != "connected"
    for cells in rows:
        table.add_row(*(cells[key] for _, key in columns), style="dim" if stale else None)
    return table


def _that_fit(widths: dict[str, int], width: int) -> list[tuple[str, str]]:
    """Return headings and keys of the columns that a terminal has room for, the dearest left out."""
    columns = list(COLUMNS)
    while len(columns) > 1 and sum(widths[key] + 2 for _, key, _ in columns) - 2 > width:
        columns.remove(max(reversed(columns), key=lambda column: column[2]))
    return [(heading, key) for heading, key, _ in columns]


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
    parts += [*board.connection.refused[:1], board.connection.text, "Ctrl-C ends"]
    return Text("  ".join(part for part in parts if part), _DIM, no_wrap=True, overflow="ellipsis")


# Running


async def watch(url: str, symbols: list[str], console: Console | None = None) -> None:
    """Show the tickers of a server until SIGINT or SIGTERM.

    Args:
        url: ``ws://HOST:PORT/v2``.
        symbols: Which; none for every pair of the server.
        console: Where; standard output by default. One that is not a terminal gets a line per update.

    Raises:
        ConfigError: The server is not there, or does not have one of the symbols.
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
                    await _show(board, stream, console)
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


async def _show(board: Board, stream: trio.MemoryReceiveChannel[Message | StateChange], console: Console) -> None:
    """Draw the board ten times a second; what comes in between only changes it."""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_draw, board, live)
            async for item in stream:
                board.apply(item, trio.current_time())
            # The stream has ended for good; the reason stays on the screen until Ctrl-C.


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
