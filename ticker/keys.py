"""Single keys of a terminal, as names; the terminal is as before afterwards. It must not know what they are for."""

from __future__ import annotations

import contextlib
import os
import sys
import termios
import tty
from collections import deque
from collections.abc import Iterator
from typing import Final

import trio

#: What a terminal sends for the keys that are not a character of their own; both forms that arrows have.
_SEQUENCES: Final = {"\x1b[C": "right", "\x1b[D": "left", "\x1bOC": "right", "\x1bOD": "left", " ": "space"}


def names(text: str) -> Iterator[str]:
    """Yield the names of the keys in what a terminal sent; those that have none here are left out."""
    while text:
        sequence = next((s for s in _SEQUENCES if text.startswith(s)), "")
        if sequence:
            yield _SEQUENCES[sequence]
        elif text[0] == "\x1b":
            return  # another sequence, of which nobody here knows the end
        else:
            yield text[0]
        text = text[len(sequence) or 1 :]


class Keys:
    """Iterates over the keys that are pressed, by name, until the terminal is gone.

    Args:
        fd: The terminal.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pressed: deque[str] = deque()

    def __aiter__(self) -> Keys:
        return self

    async def __anext__(self) -> str:
        while not self._pressed:
            await trio.lowlevel.wait_readable(self._fd)
            data = os.read(self._fd, 256)
            if not data:
                raise StopAsyncIteration
            self._pressed.extend(names(data.decode(errors="replace")))
        return self._pressed.popleft()


@contextlib.contextmanager
def single_keys() -> Iterator[Keys | None]:
    """Have the terminal hand over each key at once and unseen; None where standard input is no terminal.

    Signals stay what they are: Ctrl-C still interrupts.
    """
    if not sys.stdin.isatty():
        yield None
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield Keys(fd)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
