"""Who takes part in the fan-out: bare loops over ``send`` and other libraries, each a process of its own."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec

from tests.benchmarks import processes
from tests.benchmarks.processes import LIFETIME_S, Bench, NotAvailableError, Process, peer, serving

C_LOOP: Final = "C send() loop"
PYTHON_LOOP: Final = "Python socket.send loop"
TRIO_LOOP: Final = "the same loop on Trio"
#: What no server can be below.
LIMITS: Final = (C_LOOP, PYTHON_LOOP)
WITHOUT_RING: Final = "ours without io_uring"
BROADCAST: Final = "websockets.broadcast"
PICOWS: Final = "picows"
#: About half a core, at 93 µs a frame. Asked for more than its core can do, it would only fall behind.
SEND_MESSAGE_PER_S: Final = 5_000.0
SUBSCRIBE: Final = {
    "ticker": '{"method":"subscribe","params":{"channel":"ticker","symbol":["BTC/USD"],"event_trigger":"bbo"}}',
    "prebuilt": '{"method":"subscribe","params":{"channel":"trade","symbol":["BTC/USD"]}}',
}
NCHAN_MODULE: Final = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")

#: Starts a server for frames of that many bytes at that many ticks per second.
Start = Callable[[int, float], AbstractContextManager[Process]]


class Contender(msgspec.Struct, frozen=True):
    """A server that sends one frame per tick to everybody.

    Attributes:
        start: Starts it.
        messages: What its subscribers have to send.
        most_per_s: Frames per second that it is asked for at most, over all subscribers.
        note: What has to be known of its figure.
    """

    start: Start
    messages: tuple[str, ...] = ()
    most_per_s: float = math.inf
    note: str = ""

    def rate(self, subscribers: int, wanted: float) -> float:
        """Return at how many ticks per second it takes part."""
        return min(wanted, self.most_per_s / subscribers)


def ours(what: str, *, ring: bool = True) -> Contender:
    """Return this project's server, for the real channel or for prebuilt frames, with or without io_uring."""

    def start(size: int, rate: float) -> AbstractContextManager[Process]:
        how = () if ring else ("send",)
        return serving(peer("ours", "ticker" if what == "ticker" else size, rate, LIFETIME_S, *how))

    return Contender(start, (SUBSCRIBE[what],))


def found(bench: Bench) -> dict[str, Contender | str]:
    """Return the others by name, or what is missing for them."""
    return {
        WITHOUT_RING: ours("prebuilt", ring=False),
        C_LOOP: Contender(
            lambda size, rate: serving([bench.program("sendlimit"), str(size), str(rate), str(LIFETIME_S)])
        ),
        PYTHON_LOOP: _module("send_loop"),
        TRIO_LOOP: _module("trio_loop"),
        PICOWS: _module("picows_send") if find_spec("picows") else "picows (pip install .[bench])",
        BROADCAST: _module("websockets_broadcast") if find_spec("websockets") else "websockets (pip install .[bench])",
        "uWebSockets (socketify)": _uwebsockets(),
        "node ws": _node_ws(bench),
        "nginx + nchan": _nchan(bench),
        "trio_websocket.send_message": _module("send_message", SEND_MESSAGE_PER_S),
    }


def _module(name: str, most_per_s: float = math.inf) -> Contender:
    return Contender(lambda size, rate: serving(peer(name, size, rate, LIFETIME_S)), most_per_s=most_per_s)


def _uwebsockets() -> Contender | str:
    if find_spec("socketify") is None:
        return "socketify (pip install .[bench])"
    return _module("uwebsockets") if find_library("uv") else "libuv (apt-get install libuv1)"


def _node_ws(bench: Bench) -> Contender | str:
    try:
        modules = str(bench.node_modules())
    except NotAvailableError as error:
        return str(error)
    script = str(processes.PEERS / "node_ws.js")
    return Contender(
        lambda size, rate: serving(["node", script, str(size), str(rate), str(LIFETIME_S)], NODE_PATH=modules)
    )


def _nchan(bench: Bench) -> Contender | str:
    if shutil.which("nginx") is None or not NCHAN_MODULE.exists():
        return "nginx with nchan (apt-get install nginx libnginx-mod-nchan)"

    @contextmanager
    def start(size: int, rate: float) -> Iterator[Process]:
        with serving(peer("nchan", size, rate, LIFETIME_S, bench.folder)) as server:
            server.pids = processes.descendants(server.popen.pid)
            yield server

    return Contender(start, note="master and worker; the publisher is not counted")
