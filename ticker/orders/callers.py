"""Whose account a connection trades on, how often it may ask, and what ends orders when it is gone.

It knows tokens, scopes, rates and switches; it must not know what is asked.
"""

from __future__ import annotations

import trio
from msgspec import UNSET, UnsetType

from ticker.errors import Code, RequestError
from ticker.guard import TokenBucket
from ticker.orders.accounts import Accounts, Grant, Scope
from ticker.orders.client import Client
from ticker.orders.order import Order
from ticker.orders.switches import Switches


class Callers:
    """The connections that have shown a token: a :class:`ticker.orders.methods.Desk`.

    Args:
        accounts: Who may trade.
        switches: Told what connections enter, and that an account has connected again when one shows its first token.
    """

    def __init__(self, accounts: Accounts, switches: Switches) -> None:
        self._accounts = accounts
        self._switches = switches
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
                self._switches.returned(grant.account)
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

    def placed(self, caller: Client, order: Order) -> None:
        """An order came from this connection."""
        self._switches.placed(caller, order.key)

    def cancel_after(self, account: str, timeout_s: float) -> None:
        """Set the dead man's switch of an account."""
        self._switches.set_dead_man(account, timeout_s)

    def cancel_on_disconnect(self, caller: Client, account: str, grace_s: float | None) -> None:
        """Have the orders that a connection enters from now on end when it is lost, or not (None)."""
        self._switches.watch(caller, grace_s)

    def forget(self, caller: Client) -> str | None:
        """Forget a connection that has ended; return its account, None if it has shown no token."""
        grant = self._grants.pop(caller, None)
        return None if grant is None else grant.account
