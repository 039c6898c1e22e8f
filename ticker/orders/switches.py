"""Switches that cancel orders when a client is gone: the dead man's, and those of its connections.

They run on real time, not the market's: what they watch are clients. They decide when; what that cancels is done by
whoever :meth:`Switches.run` calls. They do not outlive the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import trio

#: Called with an account, why, and which orders (None: all of them).
Cancel = Callable[[str, str, frozenset[int] | None], None]


class _Timer(NamedTuple):
    due: float
    reason: str
    keys: frozenset[int] | None


class Switches:
    """Timers by account.

    An account has one dead man's switch, and one timer for each of its connections that was lost.
    """

    def __init__(self) -> None:
        self._timers: dict[tuple[str, object], _Timer] = {}
        self._changed = trio.Event()

    def set_dead_man(self, account: str, timeout_s: float) -> None:
        """Cancel everything of an account after a while unless this is called again; 0 calls it off."""
        if timeout_s:
            self._set((account, None), _Timer(trio.current_time() + timeout_s, "dead_man", None))
        else:
            self._timers.pop((account, None), None)

    def lost(self, account: str, connection: object, grace_s: float, keys: frozenset[int]) -> None:
        """Cancel the orders of a connection that was lost after a while, unless its account comes back."""
        self._set((account, connection), _Timer(trio.current_time() + grace_s, "disconnect", keys))

    def returned(self, account: str) -> None:
        """An account has connected again: what its lost connections left stays."""
        for switch in [switch for switch in self._timers if switch[0] == account and switch[1] is not None]:
            del self._timers[switch]

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
