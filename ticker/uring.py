"""Many sends in one system call: as much of Linux's io_uring as a fan-out needs.

A broadcast is hundreds of ``send`` calls that differ in their socket only. Here they are rows of a queue that numpy
fills, and the kernel does all of them in one call. The queues are memory shared with the kernel, laid out as
``io_uring_setup(2)`` and ``linux/io_uring.h`` say.

Nothing is ever under way between two calls: a send that may not wait (``MSG_DONTWAIT``) is done or refused at once, so
the kernel keeps no address of ours, and head and tail, which only this thread and its own system calls move, need no
barriers. It must not know who is told what.
"""

from __future__ import annotations

import array
import ctypes
import errno
import logging
import mmap
import os
import socket
import sys
import weakref
from typing import Final

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

#: Of every architecture but alpha and mips, for which numpy has no wheels.
_SETUP, _ENTER = 425, 426
#: Go on with the batch after a row that cannot be submitted (Linux 5.18); one thread submits (6.0).
_SUBMIT_ALL, _SINGLE_ISSUER = 1 << 7, 1 << 12
_OP_SEND: Final = 26
_ENTRIES_AT: Final = 0x1000_0000  # where the rows are mapped
_PARAMETERS: Final = np.dtype(
    {
        "names": ["sq_entries", "cq_entries", "flags", "sq_head", "sq_tail", "sq_array", "cq_head", "cq_tail", "cqes"],
        "formats": ["u4"] * 9,
        "offsets": [0, 4, 8, 40, 44, 64, 80, 84, 100],
        "itemsize": 120,
    }
)
_REQUEST: Final = np.dtype(
    {
        "names": ["opcode", "fd", "address", "length", "flags", "user_data"],
        "formats": ["u1", "i4", "u8", "u4", "u4", "u8"],
        "offsets": [0, 4, 16, 24, 28, 32],
        "itemsize": 64,
    }
)
_RESULT: Final = np.dtype({"names": ["user_data", "result"], "formats": ["u8", "i4"], "itemsize": 16})
_WRAP: Final = 1 << 32
#: Errors of a call that the next one need not have.
_PASSING: Final = (errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOMEM)


class Uring:
    """Sends one buffer to many sockets; only from the thread that made it. The system has it back with the object.

    Attributes:
        room: How many sockets one call can reach.

    Args:
        room: A power of two.

    Raises:
        OSError: The system has no io_uring, or does not let us use it.
    """

    def __init__(self, room: int = 256) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall.restype = ctypes.c_long
        self._call = libc.syscall
        parameters = np.zeros(1, _PARAMETERS)
        parameters["flags"] = _SUBMIT_ALL | _SINGLE_ISSUER
        self._file = self._call(_SETUP, room, ctypes.c_void_p(parameters.ctypes.data))
        if self._file < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        weakref.finalize(self, os.close, self._file)
        at = {name: int(parameters[name][0]) for name in _PARAMETERS.names or ()}
        self.room, results = at["sq_entries"], at["cq_entries"]
        size = max(at["cqes"] + results * _RESULT.itemsize, at["sq_array"] + 4 * self.room)
        shared = mmap.mmap(self._file, size)
        self._head, self._tail, self._results_head, self._results_tail = (
            np.frombuffer(shared, np.uint32, 1, at[name]) for name in ("sq_head", "sq_tail", "cq_head", "cq_tail")
        )
        self._order = np.frombuffer(shared, np.uint32, self.room, at["sq_array"])
        self._results = np.frombuffer(shared, _RESULT, results, at["cqes"])
        rows = mmap.mmap(self._file, self.room * _REQUEST.itemsize, offset=_ENTRIES_AT)
        requests = np.frombuffer(rows, _REQUEST, self.room)
        self._numbers = np.arange(self.room, dtype=np.uint32)
        requests["opcode"], requests["user_data"] = _OP_SEND, self._numbers
        requests["flags"] = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        self._files, self._address, self._length = requests["fd"], requests["address"], requests["length"]

    def send(self, files: array.array[int], data: bytes) -> npt.NDArray[np.int32]:
        """Send ``data`` to each socket, as far as it takes it now.

        Args:
            files: File numbers, at most ``room``, none of them twice; a negative one is refused.
            data: The buffer.

        Returns:
            int32, shape ``(len(files),)``: how many bytes each took; 0 or less: nothing, for whatever reason.

        Raises:
            OSError: The system does not take requests any more; nothing was sent.
        """
        number, tail = len(files), int(self._head[0])
        taken = np.zeros(number, np.int32)
        self._results_head[0] = self._results_tail[0]  # whatever an exception may have left here the last time
        self._files[:number] = files
        self._address[:number] = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value
        self._length[:number] = len(data)
        for begin, end, place in _parts(tail, number, self.room):
            self._order[place : place + end - begin] = self._numbers[begin:end]
        self._tail[0] = (tail + number) % _WRAP
        begun = self._call(_ENTER, self._file, number, 0, 0, None, ctypes.c_size_t(0))
        self._tail[0] = self._head[0]  # what the kernel has not begun, for want of memory say, is taken back
        if begun < 0 and ctypes.get_errno() not in _PASSING:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        head = int(self._results_head[0])
        for begin, end, place in _parts(head, (int(self._results_tail[0]) - head) % _WRAP, len(self._results)):
            results = self._results[place : place + end - begin]
            taken[results["user_data"]] = results["result"]
        self._results_head[0] = self._results_tail[0]
        return taken


def _parts(first: int, number: int, size: int) -> list[tuple[int, int, int]]:
    """Return where ``number`` entries of a ring are that begin at ``first``: (begin, end) and the place of begin."""
    place = first % size
    straight = min(number, size - place)
    parts = [(0, straight, place), (straight, number, 0)]
    return parts if straight < number else parts[:1]


def open_ring() -> Uring | None:
    """Return a ring, or None where there can be none: not Linux, too old, or forbidden, as in most containers."""
    if sys.platform != "linux":
        return None
    try:
        return Uring()
    except OSError as error:
        logger.debug("no io_uring here (%s); a send is a system call", errno.errorcode.get(error.errno or 0, error))
        return None
