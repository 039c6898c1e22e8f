"""One small sound file of every format and table, made here: what tests of formats mutate, pack and convert."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feeds import layout
from feeds.formats.format import build
from tests import dbn_files

#: 2024-08-08 12:00:00 UTC.
START_S = 1_723_118_400
START_US = START_S * 1_000_000


def _lines(header: str, line: Callable[[int], str], count: int = 40) -> bytes:
    return "".join(f"{text}\n" for text in ([header] if header else []) + [line(i) for i in range(count)]).encode()


def _tardis(columns: str, line: Callable[[int], str]) -> bytes:
    def whole(i: int) -> str:
        at = START_US + i * 1_000
        return f"bitmex,XBTUSD,{at},{at + 250},{line(i)}"

    return _lines(f"exchange,symbol,timestamp,local_timestamp,{columns}", whole)


def _ladder(i: int) -> str:
    return ",".join(f"{100.5 + k + i % 3},{k + 1},{99.5 - k - i % 2},{k + 2}" for k in range(3))


def _rows(table: str) -> pa.Table:
    ts = np.arange(40, dtype=np.int64) * 1_000_000 + START_US * 1_000
    columns: dict[str, object] = {
        "ts_recv": ts,
        "ts_event": ts - 5,
        "seq": np.arange(40),
        "symbol": "A/B",
        "venue": "V",
    }
    prices = {name: 100.0 + np.arange(40) * 0.5 for name in layout.PRICES[table]}
    quantities = {name: np.arange(40) * 0.25 for name in layout.QUANTITIES[table]}
    return pa.Table.from_batches([build(table, columns | prices | quantities)])  # type: ignore[arg-type]


def _parquet(table: str) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(_rows(table), buffer, write_page_checksum=True)
    return buffer.getvalue()


def _arrow(table: str, *, stream: bool) -> bytes:
    buffer, rows = io.BytesIO(), _rows(table)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(buffer, rows.schema) as writer:
        writer.write_table(rows)
    return buffer.getvalue()


def _dbn(version: int) -> bytes:
    """Records of all kinds, the first of them repeated so that some lie at even distances."""
    ts, px, day = START_S * 1_000_000_000, 1_000_000_000, date(2024, 8, 8)
    mixed = [
        dbn_files.definition(version),
        dbn_files.mapping(version, "NQU4", instrument=8),
        dbn_files.order(ts, "A", 5, 100 * px, 3),
        dbn_files.order(ts + 1, "T", 0, 100 * px, 1, "A"),
        dbn_files.trade(ts + 1, 100 * px, 1, instrument=8),
        dbn_files.status(ts + 2),
        dbn_files.top(ts + 3, (99 * px, 4), (101 * px, 2), action="T", side="B", price=101 * px, size=1),
        dbn_files.ten(ts + 4, [(99 * px, 5), (98 * px, 1)], [(103 * px, 1)], instrument=8),
        dbn_files.ten(ts + 5, [(99 * px, 6)], [(103 * px, 1)], instrument=8),
        dbn_files.bar(ts, (px, 3 * px, px, 2 * px), 9),
    ]
    mappings = {"ESU4": [(day, date(2024, 8, 9), "7")]}
    return dbn_files.header(version, mappings) + b"".join([*mixed[:1], *mixed[2:3] * 9, *mixed * 3])


#: Messages of every kind that is read, and one that is not.
BINANCE = (
    '{"u":400900217,"s":"BTCUSDT","b":"25.35190000","B":"31.21000000","a":"25.36520000","A":"40.66000000"}',
    '{"stream":"btcusdt@trade","data":{"e":"trade","E":1672515782136,"s":"BTCUSDT","t":12345,"p":"25.36","q":"0.5",'
    '"T":1672515782136,"m":true,"M":true}}',
    '{"e":"depthUpdate","E":1672515782136,"s":"BTCUSDT","U":157,"u":160,"b":[["25.35","10"]],"a":[["25.37","0"]]}',
    '{"lastUpdateId":158,"bids":[["25.34","4.0"],["25.33","1.5"]],"asks":[["25.37","12.5"]]}',
    '{"e":"depthUpdate","E":1672515782236,"s":"BTCUSDT","U":161,"u":161,"b":[["25.34","0"]],"a":[]}',
    '{"e":"kline","E":1672515782136,"s":"BTCUSDT","k":{"t":1672515780000,"o":"25.35"}}',
    '{"e":"aggTrade","E":1672515782136,"s":"ETHUSDT","a":5933014,"p":"0.001","q":"100","T":1672515782136,"m":false}',
)
KRAKEN = (
    '{"channel":"ticker","type":"snapshot","data":[{"symbol":"BTC/USD","bid":60000.1,"bid_qty":1.5,"ask":60000.2,'
    '"ask_qty":0.25,"last":60000.2}]}',
    '{"channel":"book","type":"snapshot","data":[{"symbol":"BTC/USD","bids":[{"price":60000.1,"qty":1.5}],'
    '"asks":[{"price":60000.2,"qty":0.25}],"checksum":2114181697}]}',
    '{"channel":"book","type":"update","data":[{"symbol":"BTC/USD","bids":[{"price":60000.1,"qty":0.0}],"asks":[],'
    '"checksum":2114181697,"timestamp":"2023-10-06T17:35:55.440295Z"}]}',
    '{"channel":"trade","type":"update","data":[{"symbol":"BTC/USD","side":"sell","price":60000.1,"qty":0.02,'
    '"ord_type":"market","trade_id":4665906,"timestamp":"2023-09-25T07:49:37.708706Z"}]}',
    '{"channel":"heartbeat"}',
)


def _captured(messages: Sequence[str]) -> bytes:
    start = START_S * 1_000_000_000
    return "".join(f"{start + i * 1_000_000} {message}\n" for i, message in enumerate([*messages] * 5)).encode()


def samples() -> Iterator[tuple[str, str, bytes]]:
    """Yield format, file name and content of each sample."""
    us, ms = START_US, START_US // 1_000
    side = ("buy", "sell", "unknown")
    trades = _tardis("id,side,price,amount", lambda i: f"id-{i},{side[i % 3]},{100 + i * 0.5},{i}")
    yield "tardis", "trades.csv", trades
    quotes = _tardis("ask_amount,ask_price,bid_price,bid_amount", lambda i: f"{i},{100.5 + i},{100 + i},{i + 1}")
    yield "tardis", "quotes.csv", quotes
    book = ("bid", "ask")
    l2 = _tardis(
        "is_snapshot,side,price,amount", lambda i: f"{'true' if i < 9 else 'false'},{book[i % 2]},{90 + i},{i}"
    )
    yield "tardis", "incremental_book_L2.csv", l2
    levels = ",".join(f"asks[{k}].price,asks[{k}].amount,bids[{k}].price,bids[{k}].amount" for k in range(3))
    yield "tardis", "book_snapshot_3.csv", _tardis(levels, _ladder)
    derivative = "funding_timestamp,funding_rate,predicted_funding_rate,open_interest,last_price,index_price,mark_price"
    yield "tardis", "derivative_ticker.csv", _tardis(derivative, lambda i: f",0.0001,,{1000 + i},{100 + i // 4},,")
    prints = lambda i: f"{i + 7},{100 + i}.5,0.25,25.1,{us + i},True,True"  # noqa: E731
    yield "binance", "BTCUSDT-trades-2025-01-01.csv", _lines("", prints)
    aggregates = lambda i: f"{i + 7},{100 + i}.5,0.25,{i},{i},{ms + i},true"  # noqa: E731
    header = "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker"
    yield "binance", "BTCUSDT-aggTrades-2024-08-08.csv", _lines(header, aggregates)
    bars = lambda i: f"{ms + i * 60_000},1.5,3.5,0.5,2.5,{i}.25,{ms + i * 60_000 + 59_999},9.5,{i},1.5,2.5,0"  # noqa: E731
    yield "binance", "BTCUSDT-1m-2024-08-08.csv", _lines("", bars)
    best = lambda i: f"{i + 7},{100 + i}.0,1.5,{101 + i}.0,2.5,{ms + i},{ms + i + 3}"  # noqa: E731
    header = "update_id,best_bid_price,best_bid_qty,best_ask_price,best_ask_qty,transaction_time,event_time"
    yield "binance", "BTCUSDT-bookTicker-2024-08-08.csv", _lines(header, best)
    header = "symbol,timestamp,first_update_id,last_update_id,side,update_type,price,qty,pu"
    depth = lambda i: f"BTCUSDT,{ms + i},{i * 10},{i * 10 + 9},{'ab'[i % 2]},set,{100 + i}.5,{i},{i * 10 - 1}"  # noqa: E731
    yield "binance", "BTCUSDT_T_DEPTH_2024-08-08.csv", _lines(header, depth)
    yield "kraken-history", "XBTUSD.csv", _lines("", lambda i: f"{START_S + i // 3},{100 + i}.5,0.125")
    message = lambda i: f"{34200 + i / 8},{1 + i % 5},{i // 5},{10 + i},{1_000_000 + i * 100},{1 - 2 * (i % 2)}"  # noqa: E731
    yield "lobster", "AAPL_2012-06-21_34200000_57600000_message_1.csv", _lines("", message)
    for version in (1, 2, 3):
        yield "dbn", f"v{version}.dbn", _dbn(version)
    yield "binance-capture", "btcusdt.txt", _captured(BINANCE)
    yield "kraken-capture", "kraken.txt", _captured(KRAKEN)
    for table in layout.TABLES:
        yield "recording", f"day.{table}.parquet", _parquet(table)
    yield "recording", "day.arrow", _arrow("trades", stream=False)
    yield "recording", "day.arrows", _arrow("book", stream=True)
