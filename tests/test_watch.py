"""``ticker watch``: what the table shows of what a server sends, and lines where there is no terminal."""

from __future__ import annotations

import io
import signal
import socket
import subprocess
import sys
from decimal import Decimal

import msgspec
import pytest
import trio
import trio.testing
from rich.console import Console

from tests.serving import BTC, ETH, ScriptedFeed, open_house, quotes_batch, service, trades_batch
from ticker.cli import main
from ticker.client import StateChange
from ticker.errors import ConfigError
from ticker.watch import Board, Rate, Row, age, line, number, render, watch

SYMBOLS = ("BTC/USD", "ETH/USD", "SOL/USD")


def ticker(symbol="BTC/USD", kind="update", timestamp="2026-01-02T09:04:31.742599Z", **values):
    row = {
        "symbol": symbol, "bid": Decimal("60000.0"), "bid_qty": Decimal("0.50000000"), "ask": Decimal("60000.1"),
        "ask_qty": Decimal("1.25000000"), "last": Decimal("60000.1"), "volume": Decimal("12.50000000"),
        "change_pct": Decimal("-0.12"), "timestamp": timestamp, **values,
    }  # fmt: skip
    return {"channel": "ticker", "type": kind, "data": [row]}


def board(*items, symbols=SYMBOLS):
    told = Board("ws://127.0.0.1:8765/v2", symbols)
    for item in items:
        told.apply(item, 100.0)
    return told


def screen(told, now=100.0, width=120, height=20, **options):
    console = Console(width=width, height=height, file=io.StringIO(), record=True, **options)
    console.print(render(told, now, width, height))
    return console.export_text(styles=bool(options)).splitlines()


def row_of(lines, symbol):
    (found,) = [words for text in lines if (words := text.split()) and words[0] == symbol]
    return found


# --- numbers and words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Decimal("60000.10"), "60000.10"),
        (Decimal("1E-8"), "0.00000001"),
        (7, "7"),
        (None, "-"),
        (Decimal("0.00"), "0.00"),
    ],
)
def test_numbers_are_printed_as_they_came(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 m 00 s"), (185, "3 m 05 s"),
     (3599.6, "1 h 00 m"), (7800, "2 h 10 m"), (float("inf"), "-")],
)  # fmt: skip
def test_ages(seconds, text):
    assert age(seconds) == text


def test_a_line_has_names_and_values_by_turns():
    assert line(ticker(last=None, change_pct=None)["data"][0]) == (
        "2026-01-02T09:04:31.742599Z BTC/USD bid 60000.0 bid_qty 0.50000000 ask 60000.1 ask_qty 1.25000000 "
        "last - change_pct - volume 12.50000000"
    )


def test_a_steady_rate_is_found():
    rate = Rate()
    for event in range(1, 200):
        rate.count(event / 10)
    assert rate.at(19.9) == pytest.approx(10, rel=0.05)
    assert rate.at(60.0) < 0.01


# --- the board


def test_the_direction_is_that_of_the_last_change():
    row, directions = Row(), []
    for last in ("5", "6", "6", "5", "5", None, "5", "7"):
        row.update({"last": None if last is None else Decimal(last), "n": len(directions)}, 0.0)
        directions.append(row.direction)
    assert directions == [0, 1, 1, -1, -1, -1, -1, 1]


def test_a_row_told_by_both_triggers_counts_once():
    """Both triggers are subscribed to, and at a trade that moves the touch both tell the same row."""
    told = board()
    assert len(told.apply(ticker(), 100.0)) == 1
    assert told.apply(ticker(), 101.0) == []
    row = told.rows["BTC/USD"]
    assert row.received_at == 100.0
    assert row.rate.at(100.0) == pytest.approx(1 / Rate.TAU_S)


@pytest.mark.parametrize(
    "message",
    [
        {"channel": "ticker", "type": "update"},
        {"channel": "ticker", "type": "update", "data": [{}]},
        {"channel": "status", "data": []},
        ticker(timestamp="noon"),
        ticker(change_pct="5"),
        ticker(last={}),
    ],
)
def test_a_message_that_lacks_something_is_a_mistake_in_the_url(message):
    with pytest.raises(ConfigError, match=r"not of this protocol .* is this a ticker server"):
        board(message)


def test_a_symbol_that_was_not_asked_for_is_passed_over():
    assert board().apply(ticker("FOO/USD"), 100.0) == []


@pytest.mark.parametrize(
    ("kind", "timestamp", "time"),
    [
        ("update", "2026-01-02T09:04:40.000000Z", "09:04:40"),
        ("update", "2026-01-02T09:04:29.000000Z", "09:04:31"),  # a venue's clock 2 s behind the recorder's
        ("update", "2026-01-02T09:00:00.000000Z", "09:00:00"),  # a tape that began again
        ("snapshot", "2026-01-02T01:00:00.000000Z", "09:04:31"),  # a symbol that has been quiet for hours
    ],
)
def test_market_time(kind, timestamp, time):
    told = board(ticker(), ticker("ETH/USD", kind, timestamp))
    assert told.market_time[11:19] == time


# --- the screen


def test_the_whole_screen():
    status = {"channel": "status", "type": "update", "data": [{"system": "online", "mode": "replay"}]}
    told = board(StateChange(state="connected"), status, ticker(last=Decimal("60000.0")), ticker())
    assert [text.rstrip() for text in screen(told, now=100.4)] == [
        "● connected  REPLAY  2026-01-02 09:04:31 UTC  1 msg/s  ws://127.0.0.1:8765/v2",
        "symbol       bid     bid qty      ask     ask qty       last   change       volume  upd/s    age",
        "BTC/USD  60000.0  0.50000000  60000.1  1.25000000  60000.1 ▲  -0.12 %  12.50000000    0.8  0.4 s",
        "ETH/USD        -           -        -           -        -          -            -    0.0      -",
        "SOL/USD        -           -        -           -        -          -            -    0.0      -",
        "Ctrl-C ends",
    ]


def test_up_is_green_and_down_is_red():
    told = board(StateChange(state="connected"), ticker(last=Decimal("5")), ticker(last=Decimal("6")))
    assert "\x1b[32m" in next(text for text in styled(told) if "6 ▲" in text).split("6 ▲")[0][-12:]
    told.apply(ticker(last=Decimal("4")), 100.0)
    assert "\x1b[31m" in next(text for text in styled(told) if "4 ▼" in text).split("4 ▼")[0][-12:]


def styled(told):
    return screen(told, force_terminal=True, color_system="standard", legacy_windows=False)


def test_as_many_rows_as_fit_and_how_many_more():
    told = board(symbols=[f"S{n:03d}/USD" for n in range(500)])
    lines = screen(told, height=12)
    assert len(lines) == 12
    assert [text.split()[0] for text in lines[2:-1]] == [f"S{n:03d}/USD" for n in range(9)]
    assert lines[-1].startswith("491 more")


def test_a_terminal_of_any_size_gets_a_screen_that_fits():
    told = board(ticker(), symbols=[f"S{n}/USD" for n in range(30)] + ["BTC/USD"])
    for width in (1, 5, 20, 40, 80, 300):
        for height in (1, 3, 4, 10, 50):
            lines = screen(told, width=width, height=height)
            assert len(lines) <= max(height, 4)
            assert max(len(text) for text in lines) <= width


def test_a_narrow_terminal_leaves_out_what_matters_least():
    told = board(ticker())
    assert screen(told, width=55)[1].split() == ["symbol", "bid", "ask", "last", "change", "age"]
    assert screen(told, width=30)[1].split() == ["symbol", "last"]


def test_columns_do_not_shrink_when_numbers_do():
    told = board(ticker(ask_qty=Decimal("123456.00000000")))
    wide = screen(told)[1]
    told.apply(ticker(ask_qty=Decimal("1.00000000")), 100.0)
    assert screen(told)[1] == wide


def test_a_lost_connection_is_told_with_its_reason():
    told = board(ticker(), StateChange(state="waiting", text="the server went away", retry_in_s=3.2))
    lines = screen(told)
    assert lines[0].startswith("○ next try in 3 s")
    assert lines[-1].startswith("the server went away")


def test_a_symbol_that_a_restarted_server_does_not_have_is_told():
    told = board(StateChange(state="connected", refused=("Currency pair not supported BTC/USD",)))
    assert screen(told)[-1].startswith("Currency pair not supported BTC/USD")


def test_text_of_a_server_is_not_taken_for_markup():
    told = board(ticker("[red]X[/red]"), StateChange(state="waiting", text="[bold]x[/bold]"), symbols=["[red]X[/red]"])
    assert row_of(screen(told), "[red]X[/red]")[1] == "60000.0"
    assert "[bold]x[/bold]" in screen(told)[-1]


# --- running


class Out(io.StringIO):
    """Standard output as a pipe; tells when something was flushed."""

    def __init__(self):
        super().__init__()
        self.flushed = trio.Event()

    def flush(self):
        if self.getvalue():
            self.flushed.set()

    async def next_lines(self):
        await self.flushed.wait()
        self.flushed = trio.Event()
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text.splitlines()


async def subscribed(house):
    """Wait until the watcher has both triggers of the ticker channel."""
    while house.market.broadcaster.statistics().subscriptions < 2:
        await trio.testing.wait_all_tasks_blocked()


def url_of(house):
    return f"ws://127.0.0.1:{house.port}/v2"


async def test_without_a_terminal_every_update_is_a_line(autojump_clock):
    out = Out()
    async with open_house(tcp=True) as house, trio.open_nursery() as nursery:
        nursery.start_soon(watch, url_of(house), ["BTC/USD"], Console(file=out))
        await subscribed(house)
        await house.feed.tell(quotes_batch(600_000, 1))
        (quoted,) = await out.next_lines()
        await house.feed.tell(trades_batch(3, 1))
        (traded,) = await out.next_lines()
        nursery.cancel_scope.cancel()
    assert " BTC/USD bid 60000.0 bid_qty 0.00000001 ask 60000.2 ask_qty 0.00000001 last - " in quoted
    assert traded.endswith(" last 60000.3 change_pct 0.00 volume 0.12345678")


async def test_without_symbols_every_pair_is_shown_once(autojump_clock):
    btc = "BTCUSDT"
    listed = ScriptedFeed([structure(BTC, symbol=btc, quote="USDT", aliases=("BTC/USDT",)), ETH])
    out = Out()
    async with open_house(listed, tcp=True) as house, trio.open_nursery() as nursery:
        nursery.start_soon(watch, url_of(house), [], Console(file=out))
        await subscribed(house)
        await house.feed.tell(quotes_batch(1, 1, instrument=0))
        assert [text.split()[1] for text in await out.next_lines()] == [btc]
        await house.feed.tell(quotes_batch(2, 1, instrument=1))
        assert [text.split()[1] for text in await out.next_lines()] == ["ETH/USD"]
        nursery.cancel_scope.cancel()


def structure(instrument, **changes):
    return msgspec.structs.replace(instrument, **changes)


async def test_an_unknown_symbol_says_what_there_is(autojump_clock):
    many = [structure(BTC, symbol=f"S{n:02d}/USD") for n in range(25)]
    async with open_house(ScriptedFeed(many), tcp=True) as house:
        with pytest.raises(ExceptionGroup) as caught:
            await watch(url_of(house), ["S03/USD", "FOO/USD", "BAR/USD"], Console(file=Out()))
        (error,) = caught.value.exceptions
        assert isinstance(error, ConfigError)
        assert str(error).endswith("does not have FOO/USD, BAR/USD; it has " + ", ".join(
            f"S{n:02d}/USD" for n in range(20)) + " and 5 more")  # fmt: skip
        await house.wait_empty()


async def test_the_table_is_drawn_at_most_ten_times_a_second(autojump_clock):
    terminal = CountingTerminal()
    console = Console(file=terminal, force_terminal=True, width=100, height=12, _environ={"TERM": "xterm"})
    async with open_house(tcp=True) as house, trio.open_nursery() as nursery:
        nursery.start_soon(watch, url_of(house), [], console)
        await subscribed(house)
        before, started = terminal.screens, trio.current_time()
        for trade in range(1, 400):
            await house.feed.tell(trades_batch(trade, 1))
            await trio.sleep(0.005)
        elapsed = trio.current_time() - started
        assert 10 <= terminal.screens - before <= 10 * elapsed + 1
        nursery.cancel_scope.cancel()
    assert "\x1b[?1049h" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[?25h") or "\x1b[?1049l" in terminal.getvalue()[-40:]


class CountingTerminal(io.StringIO):
    """Counts whole screens: each begins with the state of the connection."""

    @property
    def screens(self):
        return self.getvalue().count(" msg/s")


# --- the command


def test_no_server_is_one_line_that_says_how_to_start_one(capsys, unused_tcp_port):
    assert main(["watch", f"ws://127.0.0.1:{unused_tcp_port}/v2"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        f"ticker watch: no server at ws://127.0.0.1:{unused_tcp_port}/v2 (Connection refused); "
        "start one with `ticker serve`\n"
    )


@pytest.fixture
def unused_tcp_port():
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


def run_watch(port, *arguments, **how):
    code = "import sys; from ticker.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "watch", f"ws://127.0.0.1:{port}/v2", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


def test_a_reader_that_leaves_and_ctrl_c_both_end_it_quietly():
    """``ticker watch | head -1``, and Ctrl-C while it prints."""
    with service() as served, run_watch(served.port) as left, run_watch(served.port, "BTC/USD") as interrupted:
        assert " bid " in left.stdout.readline()
        left.stdout.close()
        left.stdout = None
        assert " BTC/USD bid " in interrupted.stdout.readline()
        interrupted.send_signal(signal.SIGINT)
        assert (interrupted.communicate(timeout=10)[1], interrupted.returncode) == ("", 0)
        assert (left.communicate(timeout=10)[1], left.returncode) == ("", 0)
