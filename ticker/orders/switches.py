"""Switches that cancel orders when a client is gone: the dead man's, and those of its connections.

They run on real time, not the market's: what they watch are clients. They decide when and which; what that cancels is
done by whoever :meth:`Switches.run` calls. They are not in the journal and do not outlive the process.

An order counts as a connection's from when it is entered until its end is on disk. Between the two the disk may fail,
and then the order may be open again, or never have been: :meth:`Switches.keep` is told what there really is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Set
from typing import NamedTuple

import trio

#: Called with an account, why, and which orders (None: all of them).
Cancel = Callable[[str, str, frozenset[int] | None], None]


class _Timer(NamedTuple):
    due: float
    reason: str
    keys: frozenset[int] | None


class _Watch(NamedTuple):
    grace_s: float
    keys: set[int]


class Switches:
    """Timers by account, and the orders that end with a connection.

    An account has one dead man's switch, and one timer for each of its connections that was lost.
    """

    def __init__(self) -> None:
        self._timers: dict[tuple[str, object], _Timer] = {}
        self._watched: dict[object, _Watch] = {}
        self._connections: dict[int, object] = {}  # by order
        self._changed = trio.Event()

    def set_dead_man(self, account: str, timeout_s: float) -> None:
        """Cancel everything of an account after a while unless this is called again; 0 calls it off."""
        if timeout_s:
            self._set((account, None), _Timer(trio.current_time() + timeout_s, "dead_man", None))
        else:
            self._timers.pop((account, None), None)

    # Connections

    def watch(self, connection: object, grace_s: float | None) -> None:
        """Have the orders that a connection enters from now on end when it is lost, or none of its orders (None)."""
        keys = self._unwatch(connection).keys
        if grace_s is not None:
            self._watched[connection] = _Watch(grace_s, keys)
            self._connections |= dict.fromkeys(keys, connection)

    def _unwatch(self, connection: object) -> _Watch:
        watch = self._watched.pop(connection, _Watch(0.0, set()))
        for key in watch.keys:
            del self._connections[key]
        return watch

    def placed(self, connection: object, key: int) -> None:
        """A connection has entered an order."""
        if connection in self._watched:
            self._watched[connection].keys.add(key)
            self._connections[key] = connection

    def ended(self, keys: Iterable[int]) -> None:
        """Orders have ended for good."""
        for key in keys:
            connection = self._connections.pop(key, None)
            if connection is not None:
                self._watched[connection].keys.discard(key)

    def keep(self, keys: Set[int]) -> None:
        """Forget all orders but these: the others have ended, or never were and their keys will be given to others."""
        self.ended(self._connections.keys() - keys)
        for switch, timer in self._timers.items():
            if timer.keys is not None:
                self._timers[switch] = timer._replace(keys=timer.keys & keys)

    def leaving(self, account: str, connection: object) -> None:
        """A connection was lost; what it has sent is done first, then :meth:`lost` is called."""
        self._timers[account, connection] = _Timer(math.inf, "disconnect", frozenset())

    def lost(self, account: str, connection: object) -> None:
        """What a connection has sent is done: if it was lost, and its account is not back yet, its time begins."""
        watch = self._unwatch(connection)
        if self._timers.pop((account, connection), None) is not None and watch.keys:
            due = trio.current_time() + watch.grace_s
            self._set((account, connection), _Timer(due, "disconnect", frozenset(watch.keys)))

    def returned(self, account: str) -> None:
        """An account has connected again: what its lost connections left stays."""
        for switch in [switch for switch in self._timers if switch[0] == account and switch[1] is not None]:
            del self._timers[switch]

    # Time

    def _set(self, switch: tuple[str, object], timer: _Timer) -> None:
        self._timers[switch] = timer
        self._changed.set()
        self._changed = trio.Event()

    async def run(self, cancel: Cancel) -> None:
        """Call ``cancel`` whenever a timer runs out, for ever."""
        while True:
            due = min((timer.due for timer in self._timers.values()), default=math.inf)
            with trio.move_on_at(due):
                await self._changed.wait()
            for switch, timer in list(self._timers.items()):
                if timer.due <= trio.current_time():
                    del self._timers[switch]
                    cancel(switch[0], timer.reason, timer.keys)
