"""Every message about orders against a golden transcript, as plain and as native clients see it."""

from __future__ import annotations

import trio
import trio.testing

from feeds.records import BUY, SELL, Marker
from tests.scripted import BTC, START_NS, Tape, open_market
from tests.test_session import Client, compare

ONE = 10**8
PLAIN = [
    '{"method":"subscribe","params":{"channel":"executions","snap_trades":true,"token":"any"},"req_id":1}',
    '{"method":"subscribe","params":{"channel":"balances","token":"any"},"req_id":2}',
    '{"method":"subscribe","params":{"channel":"positions"},"req_id":3}',
    '{"method":"add_order","params":{"order_type":"limit","side":"buy","symbol":"BTC/USD","order_qty":1.5,'
    '"limit_price":101.0,"cl_ord_id":"my-1","order_userref":7,"post_only":false,"token":"any"},"req_id":4}',
    '{"method":"amend_order","params":{"cl_ord_id":"my-1","order_qty":1.25,"limit_price":100.5},"req_id":5}',
    '{"method":"cancel_order","params":{"order_id":["O000000000001","O000000000009"]},"req_id":6}',
    '{"method":"add_order","params":{"order_type":"iceberg","side":"buy","symbol":"BTC/USD","order_qty":10,'
    '"limit_price":90,"display_qty":1},"req_id":7}',
    '{"method":"add_order","params":{"order_type":"stop-loss-limit","side":"sell","symbol":"BTC/USD","order_qty":1,'
    '"limit_price":95,"triggers":{"reference":"last","price":96,"price_type":"static"},"reduce_only":true},"req_id":8}',
    '{"method":"add_order","params":{"order_type":"limit","side":"buy","symbol":"BTC/USD","order_qty":1,'
    '"limit_price":90,"time_in_force":"gtd","expire_time":"2026-01-02T09:05:31Z","post_only":true,'
    '"stp_type":"cancel_both"},"req_id":9}',
    '{"method":"add_order","params":{"order_type":"market","side":"buy","symbol":"BTC/USD","order_qty":1,'
    '"time_in_force":"fok","validate":true},"req_id":10}',
    '{"method":"batch_add","params":{"symbol":"BTC/USD","orders":[{"order_type":"limit","side":"buy","order_qty":1,'
    '"limit_price":80},{"order_type":"limit","side":"buy","order_qty":2,"limit_price":81,"cl_ord_id":"my-2"}]},'
    '"req_id":11}',
    '{"method":"batch_cancel","params":{"orders":["O000000000004"],"cl_ord_id":["my-2"]},"req_id":12}',
    '{"method":"cancel_all_orders_after","params":{"timeout":60},"req_id":13}',
    '{"method":"cancel_all_orders_after","params":{"timeout":0},"req_id":14}',
    '{"method":"cancel_all","params":{"token":"any"},"req_id":15}',
    '{"method":"order_status","params":{"cl_ord_id":"my-1"},"req_id":16}',
    '{"method":"add_order","params":{"order_type":"limit","side":"buy","symbol":"BTC/USD","order_qty":1},"req_id":17}',
    '{"method":"add_order","params":{"order_type":"market","side":"buy","symbol":"BTC/USD","order_qty":true},"req_id":18}',
    '{"method":"add_order","params":{"order_type":"market","side":"buy","symbol":"BTC/USD","order_qty":1,"margin":true},'
    '"req_id":19}',
    '{"method":"unsubscribe","params":{"channel":"balances"},"req_id":20}',
]
NATIVE = [
    '{"method":"subscribe","params":{"channel":"executions","resume":{"epoch":"EPOCH","after":14}},"req_id":1}',
    '{"method":"subscribe","params":{"channel":"balances"},"req_id":2}',
    '{"method":"subscribe","params":{"channel":"positions"},"req_id":3}',
    '{"method":"cancel_on_disconnect","params":{"enable":true,"grace_ms":5000},"req_id":4}',
    '{"method":"add_order","params":{"order_type":"limit","side":"sell","symbol":"BTC/USD","order_qty":1,'
    '"limit_price":99.0,"cl_ord_id":"n-1","ttl_ms":1000},"req_id":5}',
    '{"method":"add_order","params":{"order_type":"limit","side":"sell","symbol":"BTC/USD","order_qty":1,'
    '"limit_price":99.0,"cl_ord_id":"n-1","ttl_ms":2000},"req_id":6}',
    '{"method":"add_order","params":{"order_type":"limit","side":"sell","symbol":"BTC/USD","order_qty":2,'
    '"limit_price":99.0,"cl_ord_id":"n-1"},"req_id":7}',
    '{"method":"order_status","params":{"cl_ord_id":"n-1"},"req_id":8}',
    '{"method":"order_status","params":{"cl_ord_id":"n-2"},"req_id":9}',
    '{"method":"add_order","params":{"order_type":"take-profit","side":"buy","symbol":"BTC/USD","order_qty":1,'
    '"triggers":{"price":97}},"req_id":10}',
    '{"method":"kill_switch","params":{"enable":true},"req_id":11}',
    '{"method":"add_order","params":{"order_type":"market","side":"buy","symbol":"BTC/USD","order_qty":1},"req_id":12}',
    '{"method":"kill_switch","params":{"enable":false},"req_id":13}',
]


async def test_every_message_about_orders_is_as_the_golden_transcript_has_it(autojump_clock, nursery, monkeypatch):
    """Set UPDATE_GOLDEN=1 to write the transcript anew; then read the difference."""
    monkeypatch.setattr("feeds.clock.wall_ns", lambda: START_NS)
    market, tape, lines = open_market(), Tape(), []
    await market.gateway.recover()
    nursery.start_soon(market.gateway.run)
    await market.marked(Marker(kind="epoch", ts=START_NS, reason=""))
    book = [(BUY, 990, 5 * ONE), (SELL, 1010, ONE), (SELL, 1020, ONE)]
    market.happened(tape.levels(BTC, *book, snapshot=True))
    epoch = market.gateway._journal.identity
    for requests, native in ((PLAIN, False), (NATIVE, True)):
        client = Client(market, native=native)
        lines.append(f"-- {'native' if native else 'plain'}")
        for request in requests:
            lines.append("-> " + request)
            client.session.receive(request.replace("EPOCH", epoch))
            await trio.testing.wait_all_tasks_blocked()
            lines.extend("<- " + payload.replace(epoch, "EPOCH") for payload in client.wire.payloads())
        lines.append("-- the market moves")
        market.happened(tape.trades((BTC, SELL, 970, ONE)))
        await trio.sleep(1)
        await trio.testing.wait_all_tasks_blocked()
        lines.extend("<- " + payload.replace(epoch, "EPOCH") for payload in client.wire.payloads())
    compare("orders.txt", "\n".join(lines) + "\n")
