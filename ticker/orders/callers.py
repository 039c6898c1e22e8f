"""Whose account a connection trades on, and how often it may ask.

It knows tokens, scopes and rates; it must not know what is asked.
"""

from __future__ import annotations

from collections.abc import Callable

import trio
from msgspec import UNSET, UnsetType

from ticker.errors import Code, RequestError
from ticker.guard import TokenBucket
from ticker.orders.accounts import Accounts, Grant, Scope
from ticker.orders.client import Client


class Callers:
    """The connections that have shown a token.

    Args:
        accounts: Who may trade.
        returned: Called with the account of a connection that has shown its first one.
    """

    def __init__(self, accounts: Accounts, returned: Callable[[str], None]) -> None:
        self._accounts = accounts
        self._returned = returned
        self._grants: dict[Client, Grant] = {}
        self._buckets: dict[str, TokenBucket] = {}

    def account(self, caller: Client, token: str | UnsetType, scope: Scope) -> str:
        """Return the account of a session: that of the last token it has shown, in its header or in a request.

        Raises:
            RequestError: A token gives nothing, gives another account, or not what is asked for; or the account asks
                too often.
        """
        bound = self._grants.get(caller)
        if token is UNSET and bound is not None:
            grant = bound
        else:
            grant = self._accounts.grant(caller.bearer if token is UNSET else token)
            if bound is not None and bound.account != grant.account:
                raise RequestError("EAPI:Invalid key: another account's", Code.INVALID_TOKEN, field="token")
            self._grants[caller] = grant
            if bound is None:
                self._returned(grant.account)
        grant.check(scope)
        if scope == "trade":
            self._check_rate(grant.account)
        return grant.account

    def _check_rate(self, account: str) -> None:
        rate = self._accounts.options[account].limits.orders_per_s
        if not rate:
            return
        now = trio.current_time()
        bucket = self._buckets.setdefault(account, TokenBucket(rate, 10 * rate, now))
        wait = bucket.take(1, now)
        if wait:
            retry = max(1, round(1000 * wait))
            raise RequestError("EOrder:Rate limit exceeded", Code.RATE_LIMITED, retry_after_ms=retry)

    def forget(self, caller: Client) -> str | None:
        """Forget a connection that has ended; return its account, None if it has shown no token."""
        grant = self._grants.pop(caller, None)
        return None if grant is None else grant.account
