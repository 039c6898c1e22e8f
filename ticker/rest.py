"""Kraken's REST API, as far as a client of its WebSocket needs it: the token with which the client trades.

A Kraken client has a key and a secret, asks for a token with them, and shows the token in every private request. Here
the key alone gives the token: a signature cannot be checked by a server that keeps no secrets, only digests, so a
client may have any secret. It knows accounts and pages; it must not know sessions or orders.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ticker.errors import RequestError
from ticker.head import Head
from ticker.orders.accounts import Accounts
from ticker.web import Page

PRIVATE: Final = "/0/private/"
#: Seconds in which Kraken wants a token shown; ours do not expire.
EXPIRES_S: Final = 900


class Rest:
    """Answers Kraken's private REST methods.

    Args:
        accounts: Who may trade.
    """

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    def private(self, head: Head, body: bytes) -> Page:
        """Do the method that the path ends with; as with Kraken, a refusal has status 200 too."""
        if head.path != PRIVATE + "GetWebSocketsToken":
            return _answer(error=["EGeneral:Unknown method"])
        try:
            token = self._accounts.token_of(head.headers.get("api-key", ""))
        except RequestError as error:
            return _answer(error=[error.text])
        return _answer(error=[], result={"token": token, "expires": EXPIRES_S})


def _answer(**fields: Any) -> Page:  # noqa: ANN401
    return 200, "application/json", msgspec.json.encode(fields) + b"\n"
