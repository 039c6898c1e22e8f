"""Several recordings as one: names, clocks, order, and the state at an instant."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import trio

from feeds.book import Books
from feeds.clock import NS
from feeds.errors import OptionError, RecordingError
from feeds.instruments import Instrument, Instruments
from feeds.merged import MergedRecording, open_recordings
from feeds.records import LAST, Batch, Levels, Marker, Quotes, StreamDigest, Trades
from feeds.replay import ReplayFeed, ReplayOptions, open_replay
from feeds.store import open_recording, write_recording

RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "recordings"
real = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the shared recordings are not here")

T0 = 1_700_000_000 * NS


def rows_at(table, seconds, price=1):
    columns = {name: np.ones(len(seconds), dtype) for name, dtype in table.DTYPES.items()}
    columns |= {"ts_recv": np.array([T0 + round(s * NS) for s in seconds]), "seq": np.arange(len(seconds))}
    columns |= {"ts_event": columns["ts_recv"] - 5, "instrument": np.zeros(len(seconds), np.int32)}
    columns |= {"flags": np.full(len(seconds), LAST, np.uint8)}
    columns |= {name: np.full(len(seconds), price) for name in ("price", "bid_px") if name in columns}
    return table(**columns)


def recorded(folder, name, *, trades=(), quotes=(), price=1, symbol="BTCUSDT", aliases=(), venue="BINANCE"):
    instruments = Instruments(
        [Instrument(symbol=symbol, base="", quote="", price_precision=2, qty_precision=0, aliases=aliases)]
    )
    batch = Batch(ts=T0, trades=rows_at(Trades, trades, price), quotes=rows_at(Quotes, quotes, price))
    batch.quotes.seq[:] += len(trades)
    return write_recording(folder / name, instruments, [batch], venue=venue)


def prices(batches):
    return [(int(p), (t - T0) / NS) for b in batches for p, t in zip(b.trades.price, b.trades.ts_recv, strict=True)]


def test_rows_come_by_time_then_in_the_order_of_naming(tmp_path):
    a = recorded(tmp_path, "a", trades=[0, 2, 4], price=1)
    b = recorded(tmp_path, "b", trades=[1, 2, 5], price=2)
    both = MergedRecording([b, a])
    assert (both.name, both.start_ns, both.end_ns) == ("b+a", T0, T0 + 5 * NS)
    batches = list(ReplayFeed(both).slices())
    assert prices(batches) == [(1, 0), (2, 1), (2, 2), (1, 2), (1, 4), (2, 5)]
    trades = Trades.concatenate([batch.trades for batch in batches])
    assert trades.seq.tolist() == list(range(6))
    assert trades.instrument.tolist() == [1, 0, 0, 1, 1, 0]


def test_an_offset_moves_the_receive_times_only(tmp_path):
    a = recorded(tmp_path, "a", trades=[0, 2], price=1)
    b = recorded(tmp_path, "b", trades=[1], price=2)
    both = MergedRecording([a, b], {"b": 2 * NS})
    batches = list(ReplayFeed(both).slices())
    assert prices(batches) == [(1, 0), (1, 2), (2, 3)]
    assert batches[-1].trades.ts_event.tolist() == [T0 + NS - 5]
    assert both.end_ns == T0 + 3 * NS


@pytest.mark.parametrize(
    ("venues", "symbols"), [(("X", "Y"), ["BTCUSDT.X", "BTCUSDT.Y"]), (("X", "X"), ["BTCUSDT.a", "BTCUSDT.b"])]
)
def test_one_symbol_of_two_recordings_is_two_instruments(tmp_path, venues, symbols):
    a = recorded(tmp_path, "a", trades=[0], venue=venues[0], aliases=("BTC/USDT", "XBT"))
    b = recorded(tmp_path, "b", trades=[0], venue=venues[1], aliases=("BTC/USDT",))
    instruments = MergedRecording([a, b]).instruments
    assert [i.symbol for i in instruments] == symbols
    assert [i.aliases for i in instruments] == [("XBT",), ()]


def test_symbols_that_do_not_clash_keep_their_names(tmp_path):
    a = recorded(tmp_path, "a", trades=[0], symbol="A", aliases=("first",))
    b = recorded(tmp_path, "b", trades=[0], symbol="B")
    instruments = MergedRecording([a, b]).instruments
    assert [(i.symbol, i.aliases) for i in instruments] == [("A", ("first",)), ("B", ())]


def test_the_state_is_that_of_every_recording_at_its_own_time(tmp_path):
    a = recorded(tmp_path, "a", trades=[0], quotes=[1, 2], price=1)
    b = recorded(tmp_path, "b", trades=[0], quotes=[1, 2, 3], price=2)
    state = MergedRecording([a, b], {"b": NS}).state_before(T0 + 3 * NS)
    assert state.quotes.instrument.tolist() == [0, 1]
    assert (state.quotes.ts_event - T0).tolist() == [2 * NS - 5, NS - 5]
    assert state.quotes.ts_recv.tolist() == [T0 + 3 * NS] * 2
    assert state.quotes.seq.tolist() == [-2, -1]


def test_names_must_tell_recordings_apart(tmp_path):
    a = recorded(tmp_path, "a", trades=[0])
    with pytest.raises(OptionError, match="two recordings are named 'a'"):
        MergedRecording([a, a])
    with pytest.raises(OptionError, match="offset for 'b', which is not replayed; there are a"):
        MergedRecording([a], {"b": 1})


def test_one_path_without_an_offset_is_a_plain_recording(tmp_path):
    recorded(tmp_path, "a", trades=[0])
    assert open_recordings([str(tmp_path / "a")]).name == "a"
    moved = open_recordings([str(tmp_path / "a")], {"a": 7})
    assert moved.start_ns == T0 + 7
    with pytest.raises(RecordingError, match="no recording"):
        open_recordings([str(tmp_path / "a"), str(tmp_path / "b")])


# --- options


def test_options_open_recordings_with_offsets_and_bounds(tmp_path):
    recorded(tmp_path, "a", trades=[0, 1, 2], price=1)
    recorded(tmp_path, "b", trades=[0, 1, 2], price=2)
    options = msgspec.convert(
        {
            "path": [str(tmp_path / "a"), str(tmp_path / "b")],
            "offset": {"b": "+500ms"},
            "from": "+500ms",
            "to": "2023-11-14T22:13:22Z",
        },
        ReplayOptions,
    )
    feed = open_replay(options)
    assert prices(feed.slices()) == [(2, 0.5), (1, 1), (2, 1.5)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"path": []}, "no recording"),
        ({"path": "x", "offset": {"x": "far"}}, "'far' is not a duration"),
        ({"path": "x", "from": "noon"}, "'noon' is not an instant"),
        ({"path": "x", "to": "+1"}, r"'\+1' is not a duration"),
    ],
)
def test_wrong_options(wrong, message):
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(wrong, ReplayOptions)


# --- real recordings


@real
def test_two_real_recordings_months_apart_meet_on_one_clock():
    binance, cme = (open_recording(RECORDINGS / name) for name in ("binance_spot_20240808", "cme_ESU4_20240701"))
    offset = binance.start_ns - cme.start_ns
    both = MergedRecording([binance, cme], {cme.name: offset})
    assert [i.symbol for i in both.instruments] == ["BTCUSDT", "ETHUSDT", "ESU4"]
    feed = ReplayFeed(both)
    merged = list(feed.slices(rows=5_000))
    assert sum(map(len, merged)) == binance.rows + cme.rows
    for kind, own in (("trades", Trades), ("quotes", Quotes), ("levels", Levels)):
        rows = own.concatenate([getattr(batch, kind) for batch in merged])
        assert (np.diff(rows.ts_recv) >= 0).all()
        assert (np.diff(rows.seq) > 0).all()
        of_binance = rows.take(rows.instrument < 2)
        alone = own.concatenate(list(getattr(binance, kind)()))
        np.testing.assert_array_equal(of_binance.ts_recv, alone.ts_recv)
        np.testing.assert_array_equal(of_binance.instrument, alone.instrument)
    middle = binance.start_ns + 100 * NS
    books = Books()
    for _ in books.apply(both.state_before(middle).levels):
        pass
    alone = Books()
    for _ in alone.apply(binance.state_before(middle).levels):
        pass
    assert [sorted(books.rows(i)) for i in (0, 1)] == [sorted(alone.rows(i)) for i in (0, 1)]


async def test_a_merged_tape_is_the_same_at_any_speed(tmp_path, autojump_clock):
    a = recorded(tmp_path, "a", trades=[0, 1, 1, 3], quotes=[1, 2.5], price=1)
    b = recorded(tmp_path, "b", trades=[0, 1, 2], quotes=[1, 3], price=2)
    digests = set()
    for speed in (0.01, 1.0, math.inf):
        digest = StreamDigest()
        send, receive = trio.open_memory_channel(math.inf)
        await ReplayFeed(MergedRecording([a, b], {"a": 3}), speed=speed).run(send)
        send.close()
        async for event in receive:
            if not isinstance(event, Marker):
                digest.update(event)
        digests.add(digest.hexdigest())
    assert len(digests) == 1
