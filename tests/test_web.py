"""The pages of a running service, and what they are made of."""

from __future__ import annotations

import json
import re
import socket
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from importlib.resources import files
from typing import NamedTuple

import msgspec
import pytest
import trio

from tests.serving import dial_tcp, service
from ticker import app
from ticker.config import Options, load
from ticker.head import parse_head
from ticker.transport import Transport
from ticker.web import _STATIC, Web

STATIC = files("ticker") / "static"


class Answer(NamedTuple):
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes


@asynccontextmanager
async def served():
    """The whole service, as the command runs it; gives its port."""
    options = msgspec.structs.replace(load(None, {"server": {"port": 0}}), simulation=Options().simulation)
    told = []
    async with trio.open_nursery() as nursery:
        listening = trio.Event()

        def announce(text):
            told.append(text)
            listening.set()

        nursery.start_soon(app.serve, options, announce)
        await listening.wait()
        yield int(re.search(r"ws://127\.0\.0\.1:(\d+)/v2", told[0])[1])
        nursery.cancel_scope.cancel()


async def ask(port, target="/", method="GET", **headers):
    lines = {"Host": f"127.0.0.1:{port}", **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    peer = dial_tcp(port)
    await peer.send(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode())
    raw = await peer.answer()
    peer.leave()
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    parsed = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
    return Answer(int(status.split()[1]), parsed, body)


# --- what is answered


@pytest.mark.parametrize(
    ("target", "kind", "inside"),
    [
        ("/", "text/html; charset=utf-8", b"<title>ticker</title>"),
        ("/?from=mail", "text/html; charset=utf-8", b"<title>ticker</title>"),
        ("/static/status.js", "text/javascript; charset=utf-8", b"use strict"),
        ("/static/status.css", "text/css; charset=utf-8", b"prefers-color-scheme"),
        ("/healthz", "application/json", b'"status":"ok"'),
        ("/api/stats?after=7", "application/json", b'"connections":[],"next":null'),
        ("/metrics/per-subscriber", "text/plain; version=0.0.4; charset=utf-8", b"# TYPE ticker_subscriber_lag_"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8", b"# TYPE ticker_sessions gauge"),
    ],
)
async def test_pages(target, kind, inside):
    async with served() as port:
        page = await ask(port, target)
        assert (page.status, page.headers["content-type"]) == (200, kind)
        assert inside in page.body
        assert int(page.headers["content-length"]) == len(page.body)


async def test_others_run_between_the_parts_of_a_page():
    """/metrics/per-subscriber stopped the market for 0.3 s at 10,000 subscriptions."""
    turns = []

    def parts():
        for part in (b"a", b"b", b"c"):
            turns.append("page")
            yield part

    async def run():
        while True:
            turns.append("other")
            await trio.lowlevel.checkpoint()

    near, far = socket.socketpair()
    with near, far:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            far.shutdown(socket.SHUT_WR)
            head = parse_head(b"GET /parts HTTP/1.1\r\nHost: a\r\n\r\n")
            await Web({"/parts": lambda _: (200, "text/plain", parts())}).respond(Transport(near), head)
            nursery.cancel_scope.cancel()
        assert far.recv(10_000).endswith(b"\r\n\r\nabc")
    assert "page page page" not in " ".join(turns)  # Trio shuffles the tasks of a turn: two may meet


async def test_head_is_get_without_the_body():
    async with served() as port:
        whole, head = await ask(port), await ask(port, method="HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.headers == whole.headers


async def test_health_says_what_runs():
    async with served() as port:
        health = json.loads((await ask(port, "/healthz")).body)
    assert (health["mode"], health["symbols"]) == ("sim", list(Options().simulation.symbols))


async def test_the_figures_that_the_page_shows_are_there():
    """The script looks them up by name in /healthz and /api/stats; a renamed one would leave a dash."""
    script = (STATIC / "status.js").read_text()
    async with served() as port:
        health = json.loads((await ask(port, "/healthz")).body)
        stats = json.loads((await ask(port, "/api/stats")).body)
    wanted = set(re.findall(r"\bstats\.(\w+)", script))
    assert wanted == {"events", "sessions", "flush_lateness_ms"}
    assert wanted <= stats.keys()
    assert stats["flush_lateness_ms"].keys() == {"p50", "p99"}
    asked = set(re.findall(r"(?:details|health)\.(\w+)", script))
    assert asked >= {"market", "mode", "feed", "subscriptions", "market_time_ns"}
    assert asked <= health.keys()


async def test_stats_are_told_by_pages_of_connections():
    async with served() as port:
        for after in ("x", "9" * 21, "9" * 5000):  # Python reads no number of 4,301 digits
            assert (await ask(port, f"/api/stats?after={after}")).status == 400
        assert (await ask(port, "/api/stats?after=" + "9" * 20)).status == 200
        wrong = await ask(port, "/api/stats?after=-1")
        assert b"connection_id" in wrong.body


@pytest.mark.parametrize("target", ["/nothing", "/static/", "/static/../web.py", "/static/status.js/", "//etc/passwd"])
async def test_there_is_no_other_page(target):
    async with served() as port:
        page = await ask(port, target)
        assert (page.status, page.headers["content-type"]) == (404, "text/plain; charset=utf-8")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_other_methods_are_told_which_there_are(method):
    async with served() as port:
        page = await ask(port, method=method)
        assert (page.status, page.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("target", ["/", "/healthz", "/metrics", "/nothing"])
async def test_every_answer_has_the_security_headers(target):
    async with served() as port:
        headers = (await ask(port, target)).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "connect-src": "'self'",
        "img-src": "'self' data:", "base-uri": "'none'", "frame-ancestors": "'none'",
    }  # fmt: skip
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


# --- who is answered


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1", 200), ("localhost:{port}", 200), ("[::1]:{port}", 200), ("evil.example", 403),
     ("127.0.0.1.evil.example", 403), ("evil.example:{port}", 403), ("[", 400), (None, 400)],
)  # fmt: skip
async def test_unknown_hosts_are_refused(host, status):
    """A page of another site whose name was made to mean 127.0.0.1 (DNS rebinding) still sends its own name."""
    async with served() as port:
        assert (await ask(port, Host=host and host.format(port=port))).status == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [(None, 200), ("http://127.0.0.1:{port}", 200), ("http://evil.example", 403), ("null", 403),
     ("http://127.0.0.1:1", 403)],
)  # fmt: skip
@pytest.mark.parametrize("upgrade", [False, True])
async def test_foreign_origins_are_refused(origin, status, upgrade):
    """WebSockets are not bound by the same-origin rule of browsers; the server has to hold it."""
    headers = {}
    if upgrade:
        headers |= {
            "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAECAwQFBgcICQoLDA0ODw==",
        }  # fmt: skip
    async with served() as port:
        headers["Origin"] = origin and origin.format(port=port)
        if upgrade and status == 200:
            assert await handshake(port, headers) == 101
        else:
            assert (await ask(port, "/v2" if upgrade else "/", **headers)).status == status


async def handshake(port, headers):
    lines = {"Host": f"127.0.0.1:{port}", **{name: value for name, value in headers.items() if value is not None}}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    peer = dial_tcp(port)
    await peer.send(f"GET /v2 HTTP/1.1\r\n{head}\r\n".encode())
    answer = await peer.stream.receive_some()
    peer.leave()
    return int(answer.split()[1])


# --- what the page is made of


class Page(HTMLParser):
    """Collects what a policy without inline code forbids, and what a page refers to."""

    def __init__(self):
        super().__init__()
        self.inline, self.links, self.ids = [], [], []
        self._open = None

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self._open = tag
        self.inline += [(tag, name) for name in values if name == "style" or name.startswith("on")]
        self.links += [values[name] for name in ("src", "href") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag == "script" and "src" not in values:
            self.inline.append((tag, "without src"))

    def handle_data(self, data):
        if self._open in ("script", "style") and data.strip():
            self.inline.append((self._open, data))

    def handle_endtag(self, tag):
        self._open = None


@pytest.fixture
def page():
    parsed = Page()
    parsed.feed((STATIC / "index.html").read_text())
    return parsed


def test_the_page_has_no_inline_script_or_style(page):
    assert page.inline == []


def test_the_check_for_inline_code_finds_it():
    parsed = Page()
    parsed.feed('<script>x()</script><style>p {}</style><p style="a" onclick="b"><script src="/s.js"></script>')
    assert len(parsed.inline) == 5


def test_the_page_refers_only_to_what_this_server_has(page):
    internal = [link for link in page.links if not link.startswith("data:image/")]
    assert sorted(internal) == ["/api/stats", "/healthz", "/metrics", "/static/status.css", "/static/status.js"]
    for target, name in _STATIC.items():
        assert (STATIC / name).is_file(), target


def test_the_script_uses_only_ids_that_the_page_has(page):
    script = (STATIC / "status.js").read_text()
    used = set(re.findall(r"""\$\("([\w-]+)"\)""", script))
    assert used <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


@pytest.mark.parametrize(
    "forbidden",
    ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", ".style", "http://",
     "https://", "import("],
)  # fmt: skip
def test_the_script_makes_no_markup_and_loads_nothing(forbidden):
    assert forbidden not in (STATIC / "status.js").read_text()


@pytest.mark.parametrize("forbidden", ["@import", "url(", "http:", "https:"])
def test_the_style_loads_nothing(forbidden):
    assert forbidden not in (STATIC / "status.css").read_text()


def test_the_snippet_on_the_page_runs():
    """The lines that the page offers are taken out of its script and run against a server."""
    pytest.importorskip("websockets.sync.client", reason="the snippet is for people who have websockets")
    script = (STATIC / "status.js").read_text()
    lines = re.search(r"textContent = \[\n(.*?)\n  \]\.join", script, re.DOTALL)[1]
    request = json.dumps({"method": "subscribe", "params": {"channel": "ticker", "symbol": ["BTC/USD"]}})
    with service() as server:
        code = "\n".join(line.strip().rstrip(",")[1:-1] for line in lines.splitlines())
        code = code.replace("${url}", f"ws://127.0.0.1:{server.port}/v2").replace("${request}", request)
        code = code.replace("print(message)", "seen.append(message); break")
        seen = []
        exec(code, {"seen": seen})
    assert json.loads(seen[0])["channel"] == "status"
