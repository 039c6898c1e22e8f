"""The lines of captures: times, notes, addresses, lengths, and which venue's they are."""

from __future__ import annotations

import gzip
from functools import partial

import pytest

from feeds.errors import RecordingError
from feeds.formats import by_name, capture, detect
from feeds.formats.lines import blocks
from feeds.formats.source import Source
from feeds.records import GAP, LAST
from tests.captures import T, line, read, rows

QUOTE = '{"u":1,"s":"BTCUSDT","b":"1.5","B":"1","a":"2.5","A":"1"}'
DEPTH = '{"e":"depthUpdate","E":1723161255208,"s":"BTCUSDT","U":6,"u":6,"b":[["1.2","1"]],"a":[]}'
WHOLE = '{"lastUpdateId":5,"bids":[["1.0","1"]],"asks":[]}'
KRAKEN = '{"channel":"heartbeat"}'


def written(tmp_path, *lines):
    path = tmp_path / "capture.txt"
    path.write_text("".join(f"{text}\n" for text in lines))
    return path


@pytest.mark.parametrize(
    ("stamp", "ns"),
    [
        ("1628952397523620123 ", 1_628_952_397_523_620_123),
        ("1628952397.5236201: ", 1_628_952_397_523_620_100),
        ("1628952397.52: ", 1_628_952_397_520_000_000),
        ("1628952397: ", 1_628_952_397_000_000_000),
    ],
)
def test_times_are_exact(tmp_path, stamp, ns):
    quotes = read(written(tmp_path, stamp + QUOTE))[0]["quotes"]
    assert rows(quotes, "ts_recv") == [(ns,)]


@pytest.mark.parametrize(
    "stamp",
    ["1628952397523 ", "99999999999999999999999 ", "-5 ", "", "noon: ", "1.5.2: ", "1e9: ", "9999999999999.0: "],
)
def test_a_line_without_a_time_that_can_be_is_bad(tmp_path, stamp):
    path = written(tmp_path, line(QUOTE)[:-1], stamp + QUOTE)
    with pytest.raises(RecordingError, match=r"capture\.txt:2: "):
        read(path)
    assert read(path, skip_bad=True)[0]["quotes"].num_rows == 1


def test_what_cryptofeed_notes_is_no_message_and_addresses_name_the_symbol_of_a_snapshot(tmp_path):
    path = written(
        tmp_path,
        "configuration: {'symbols': ['BTC-USDT']}",
        'https://api.binance.com/api/v3/exchangeInfo -> 1628952390.5: {"timezone":"UTC","symbols":[]}',
        "wss://stream.binance.com:9443/stream?streams=btcusdt@depth@100ms <-> 1628952394.891941",
        'wss://stream.binance.com:9443/ws <- 1628952394.9: {"method":"SUBSCRIBE"}',
        f"1628952395.0: {DEPTH}",
        f"1628952395.0: {QUOTE.replace('BTCUSDT', 'ETHUSDT')}",
        f"https://api.binance.com/api/v3/depth?symbol=BTCUSDT&limit=1000 -> 1628952396.25: {WHOLE}",
        "",
    )
    tables, source = read(path)
    assert rows(tables["book"], "ts_recv", "symbol", "price") == [
        (1_628_952_396_250_000_000, "BTCUSDT", None),
        (1_628_952_396_250_000_000, "BTCUSDT", 1.0),
        (1_628_952_396_250_000_000, "BTCUSDT", 1.2),
    ]
    assert source.passed_over == {"messages of no known kind": 1}


UNFIT = {
    "decimals": ("60000.12345678949", "1"),
    "price": ("4550000.000000005", "1"),
    "qty": ("1", "4550000.000000005"),
}


@pytest.mark.parametrize("why", UNFIT)
def test_a_number_that_cannot_be_printed_is_a_bad_line(tmp_path, why):
    messages = [
        f'{{"e":"trade","E":1723161255208,"s":"BTCUSDT","t":{i},"p":"{price}","q":"{qty}","T":1723161255208,"m":true}}'
        for i, (price, qty) in enumerate([("60000.1", "0.5"), UNFIT[why], ("60000.2", "0.5")])
    ]
    path = written(tmp_path, *(line(message)[:-1] for message in messages))
    with pytest.raises(RecordingError, match=r"capture\.txt:2: (price|qty) has over 9 decimals or is too large \("):
        read(path)
    tables, source = read(path, skip_bad=True)
    assert rows(tables["trades"], "trade_id", "price") == [("0", 60_000.1), ("2", 60_000.2)]
    assert source.refused == 1


@pytest.mark.parametrize("size", [100, 1 << 20])
def test_what_follows_a_change_left_out_is_marked_as_after_a_gap(tmp_path, monkeypatch, size):
    monkeypatch.setattr(capture, "blocks", partial(blocks, size=size))
    change = '{{"e":"depthUpdate","E":1723161255208,"s":"{}","U":{},"u":{},"b":[["{}","1"]],"a":[["2.5","1"]]}}'
    changes = [
        ("A", 6, "1.2"),
        ("B", 6, "1.2"),
        ("A", 7, "1.0000000001"),
        ("B", 7, "1.2"),
        ("A", 8, "1.2"),
        ("A", 9, "1.2"),
    ]
    snapshots = [f"https://x.binance.com/depth?symbol={symbol} -> 1628952396.25: {WHOLE}" for symbol in "AB"]
    lines = [f"1628952397.0: {change.format(symbol, u, u, price)}" for symbol, u, price in changes]
    path = written(tmp_path, *snapshots, *lines)
    with pytest.raises(RecordingError, match=r"capture\.txt:5: price has over 9 decimals"):
        read(path)
    tables, source = read(path, skip_bad=True)
    told = rows(tables["book"], "symbol", "venue_seq", "evt_flags")
    assert [(symbol, seq, flags) for symbol, seq, flags in told if seq > 5] == [
        *(("A", 6, flags) for flags in (0, LAST)),
        *(("B", 6, flags) for flags in (0, LAST)),
        *(("B", 7, flags) for flags in (0, LAST)),
        *(("A", 8, flags) for flags in (GAP, LAST)),
        *(("A", 9, flags) for flags in (0, LAST)),
    ]
    assert source.refused == 1


def test_times_that_run_backwards_are_held(tmp_path):
    quotes = read(written(tmp_path, *(line(QUOTE, T + i)[:-1] for i in (5, 3, 6))))[0]["quotes"]
    assert rows(quotes, "ts_recv", "evt_flags") == [(T + 5, 0x80), (T + 5, 0x88), (T + 6, 0x80)]


def test_packed_captures_are_told_by_their_content(tmp_path):
    path = tmp_path / "capture"
    path.write_bytes(gzip.compress(line(QUOTE).encode()))
    assert detect(Source(path)).name == "binance-capture"
    assert read(path)[0]["quotes"].num_rows == 1


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (line(QUOTE), "binance-capture"),
        (line(KRAKEN), "kraken-capture"),
        (f"1628952395.0: {KRAKEN}", "kraken-capture"),
        (line('{"result":null,"id":1}') + line(DEPTH), "binance-capture"),
        (line('{ "stream": "btcusdt@depth", "data": {} }'), "binance-capture"),
        ("https://api.binance.com/api/v3/exchangeInfo -> 1628952390.5: {" + "x" * 70_000, "binance-capture"),
        ("wss://ws.kraken.com/v2 <-> 1628952394.8\n1628952395.0: " + KRAKEN, "kraken-capture"),
    ],
)
def test_a_capture_is_recognised_by_its_first_message_that_can_be_told(tmp_path, text, name):
    path = tmp_path / "x"
    path.write_text(text)
    assert detect(Source(path)).name == name


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\n",
        b"\xff\xfe\x00",
        b"timestamp,price\n",
        b"1723161254000000000 \n",
        b"1723161254000000000 [1,2]\n",
        b"{}\n",
    ],
)
def test_other_files_are_not_recognised(head):
    assert not any(by_name(f"{venue}-capture").recognises(head, "x") for venue in ("binance", "kraken"))


def test_a_line_longer_than_a_block_is_read_and_one_longer_than_the_limit_is_refused(tmp_path, monkeypatch):
    long = line('{"e":"exchangeInfo","filler":"' + "x" * (3 << 20) + '"}')[:-1]
    path = written(tmp_path, line(QUOTE)[:-1], long, line(QUOTE)[:-1])
    tables, source = read(path)
    assert tables["quotes"].num_rows == 2
    assert source.passed_over == {"exchangeInfo": 1}
    monkeypatch.setattr(capture, "LONGEST_LINE", 1 << 20)
    with pytest.raises(RecordingError, match=r"capture\.txt:2: the line is longer than"):
        read(path)


def test_the_venue_can_be_named(tmp_path):
    quotes = read(written(tmp_path, line(QUOTE)[:-1]), venue="BINANCE_US")[0]["quotes"]
    assert quotes["venue"].to_pylist() == ["BINANCE_US"]
