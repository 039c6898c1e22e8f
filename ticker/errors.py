"""What can go wrong, told apart by whose fault it is. A leaf: it imports nothing of the project.

* :class:`RequestError`: the client asked for something it cannot have. Answered on the wire; the connection lives.
* :class:`ProtocolViolation`: the client broke the transport's rules. Answered with a Close frame.
* :class:`ConfigError`: the person who starts the server has to change something. Printed without a traceback.

Everything else that is raised is a defect of ours. In the task of a connection it is logged with a traceback and costs
that connection a Close 1011; in a task that serves all, such as the broadcaster's or the gateway's, it ends the server.
"""

from __future__ import annotations

import enum


class Code(enum.IntEnum):
    """Numbers of refusals: 1xxx protocol, 2xxx data, 3xxx orders, 4xxx replay, 5xxx limits and auth, 9xxx defects."""

    INVALID_JSON = 1001
    INVALID_REQUEST = 1002
    UNKNOWN_METHOD = 1003
    INVALID_FIELD = 1004
    UNKNOWN_CHANNEL = 2001
    UNKNOWN_SYMBOL = 2002
    ALREADY_SUBSCRIBED = 2003
    NOT_SUBSCRIBED = 2004
    TOO_MANY_SUBSCRIPTIONS = 2005
    INVALID_ORDER = 3001
    UNKNOWN_ORDER = 3002
    POST_ONLY = 3003
    REDUCE_ONLY = 3004
    DEADLINE_ELAPSED = 3005
    INSUFFICIENT_FUNDS = 3102
    DUPLICATE_CL_ORD_ID = 3103
    TOO_MANY_ORDERS = 3104
    NO_MARKET = 3105
    POSITION_LIMIT = 3106
    NOTIONAL_LIMIT = 3107
    PRICE_COLLAR = 3108
    HALTED = 3109
    STATUS_UNKNOWN = 3900
    SLOW_CONSUMER = 2301
    UNKNOWN_SOURCE = 4001
    UNREADABLE_SOURCE = 4002
    UNKNOWN_SESSION = 4003
    OTHER_SOURCE = 4004
    TOO_MANY_SESSIONS = 4005
    BAD_TIME = 4006
    NOT_A_REPLAY = 4007
    RATE_LIMITED = 5001
    BUSY = 5002
    INVALID_TOKEN = 5003
    PERMISSION_DENIED = 5004
    UNAVAILABLE = 9001

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed a little later."""
        return self in (Code.NO_MARKET, Code.RATE_LIMITED, Code.BUSY, Code.UNAVAILABLE, Code.STATUS_UNKNOWN)


class RequestError(Exception):
    """A request that is refused with a reply.

    Attributes:
        text: The reply's ``error``, in Kraken's words where Kraken has any.
        code: Which refusal it is, for machines.
        symbol: The symbol that it concerns, if one.
        field: The parameter that it concerns, if one.
        retry_after_ms: When it is worth trying again, if that is known.
    """

    def __init__(
        self,
        text: str,
        code: Code,
        *,
        symbol: str | None = None,
        field: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(text)
        self.text = text
        self.code = code
        self.symbol = symbol
        self.field = field
        self.retry_after_ms = retry_after_ms


class ProtocolViolation(Exception):
    """The peer broke the transport's rules or its limits.

    Attributes:
        close_code: RFC 6455 section 7.4.1 code for the Close frame.
        reason: Text for the Close frame, at most 123 bytes of UTF-8.
    """

    def __init__(self, close_code: int, reason: str) -> None:
        super().__init__(f"{close_code} {reason}")
        self.close_code = close_code
        self.reason = reason


class ConfigError(Exception):
    """A setting or an argument that its author has to change; the text names it and what is allowed."""


class JournalError(Exception):
    """The journal of orders cannot be opened, or what was to be written may not be on disk; the text says what to do.

    Attributes:
        retryable: Whether opening it again may succeed a little later: the disk was full or failed, or another
            process has the file.
    """

    def __init__(self, text: str, *, retryable: bool = False) -> None:
        super().__init__(text)
        self.retryable = retryable
