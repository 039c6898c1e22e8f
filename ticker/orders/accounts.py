"""Who may trade: accounts, their tokens, and what each may do.

A TOML file names the accounts; without one there is the account :data:`DEMO`, which everybody trades on and nobody
needs a token for. A token is a random text of at least 128 bits; the file has only its SHA-256, so that reading the
file lets nobody trade. It must not know sessions or orders.

.. code-block:: toml

    [accounts.alice]
    tokens = [{ sha256 = "9f86d081884c7d65...", scopes = ["read", "trade"] }]
    balances = { USD = "100000", BTC = "1.5" }
    maker_bps = 16.0
    taker_bps = 26.0
    [accounts.alice.limits]
    open_orders = 200
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from feeds.instruments import Instruments
from ticker.errors import Code, ConfigError, RequestError

#: The account that there is without a file of accounts.
DEMO: Final = "demo"
#: What it begins with: plenty of everything that can be traded.
DEMO_QUOTE: Final = 10_000_000
DEMO_BASE: Final = 10_000
TOKEN_BYTES: Final = 32

Scope = Literal["read", "trade"]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one account may do; 0 means without limit.

    Attributes:
        open_orders: At once.
        orders_per_s: Requests that enter, amend or cancel orders, sustained; ten seconds' worth may come at once.
        notional: Price times quantity of one order, in units of its quote asset.
        position: Net bought or sold of one instrument with all open orders filled, in units of its base asset.
        collar_pct: How far the limit of an order may be beyond the last price, in percent of it.
    """

    open_orders: Annotated[int, msgspec.Meta(ge=0)] = 100_000
    orders_per_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    notional: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    position: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    collar_pct: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Token(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token as the file has it.

    Attributes:
        sha256: Of its text, 64 hexadecimal digits.
        scopes: ``read`` to see orders and balances, ``trade`` to change them.
    """

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    scopes: tuple[Scope, ...] = ("read", "trade")


class AccountOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An account.

    Attributes:
        balances: What it begins with, by asset, as decimal text; what the journal says of it counts from then on.
        tokens: By which it is known.
        maker_bps: Fee for orders that rested, in hundredths of a percent of what was paid.
        taker_bps: Fee for orders that traded at once.
        limits: What it may do.
    """

    balances: dict[str, str]
    tokens: tuple[Token, ...] = ()
    maker_bps: Annotated[float, msgspec.Meta(ge=0, le=1000)] = 25.0
    taker_bps: Annotated[float, msgspec.Meta(ge=0, le=1000)] = 40.0
    limits: Limits = Limits()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    accounts: dict[Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{1,36}$")], AccountOptions]


class Grant(msgspec.Struct, frozen=True):
    """What a token gives: an account, and what may be done with it."""

    account: str
    scopes: tuple[Scope, ...]

    def check(self, scope: Scope) -> None:
        """Pass if a scope is granted.

        Raises:
            RequestError: It is not.
        """
        if scope not in self.scopes:
            raise RequestError("EGeneral:Permission denied", Code.PERMISSION_DENIED)


class Accounts:
    """All accounts.

    Attributes:
        options: By name, in the order of the file; the position, from 1, is the account's number in a venue.
        open: Whether everybody may trade without a token, on the demo account.
    """

    def __init__(self, options: Mapping[str, AccountOptions], *, everybody: bool = False) -> None:
        self.options = options
        self.open = everybody
        self._grants = [
            (bytes.fromhex(token.sha256), Grant(name, token.scopes))
            for name, account in options.items()
            for token in account.tokens
        ]

    def grant(self, token: str) -> Grant:
        """Return what a token gives.

        Every digest is compared, in constant time, so that how long it takes tells nothing about the others.

        Raises:
            RequestError: Nothing.
        """
        if self.open:
            return Grant(DEMO, ("read", "trade"))
        digest, found = hashlib.sha256(token.encode()).digest(), None
        for known, grant in self._grants:
            if hmac.compare_digest(known, digest):
                found = grant
        if found is None:
            raise RequestError("EAPI:Invalid key", Code.INVALID_TOKEN, field="token")
        return found

    def token_of(self, key: str) -> str:
        """Return the token of a Kraken client with an API key: the key itself, because it is one.

        Where everybody may trade, any key will do, and any token; it is a new one each time, as Kraken's are.

        Raises:
            RequestError: The key is no token.
        """
        if self.open:
            return new_token()[0]
        self.grant(key)
        return key


def demo_accounts(instruments: Instruments) -> Accounts:
    """Return the demo account, for a market without a file of accounts."""
    balances = {instrument.base: str(DEMO_BASE) for instrument in instruments}
    balances |= {currency: str(DEMO_QUOTE) for currency in (quote_of(i.quote) for i in instruments)}
    return Accounts({DEMO: AccountOptions(balances=balances)}, everybody=True)


def read_accounts(path: str) -> Accounts:
    """Read a file of accounts.

    Raises:
        ConfigError: It cannot be read, or says something that is not allowed.
    """
    try:
        file = msgspec.convert(tomllib.loads(Path(path).read_text()), _File)
    except OSError as error:
        raise ConfigError(f"cannot read --accounts {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None
    for name, account in file.accounts.items():
        _check_balances(path, name, account.balances)
    _check_tokens(path, file.accounts)
    return Accounts(file.accounts)


def _check_balances(path: str, name: str, balances: dict[str, str]) -> None:
    for asset, amount in balances.items():
        try:
            valid = re.fullmatch(r"\d{1,15}(\.\d{1,18})?", amount) is not None and Decimal(amount) >= 0
        except InvalidOperation:
            valid = False
        if not valid:
            raise ConfigError(f"{path}: accounts.{name}.balances.{asset}: {amount!r} is not an amount such as '1.5'")


def _check_tokens(path: str, accounts: Mapping[str, AccountOptions]) -> None:
    owners: dict[str, str] = {}
    for name, account in accounts.items():
        for token in account.tokens:
            if token.sha256 in owners:
                twice = f"{token.sha256[:8]}… is one of accounts.{owners[token.sha256]} already"
                raise ConfigError(f"{path}: accounts.{name}.tokens: {twice}")
            owners[token.sha256] = name


def new_token() -> tuple[str, str]:
    """Return a new random token, and its SHA-256 for the file of accounts."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    return token, hashlib.sha256(token.encode()).hexdigest()


def quote_of(quote: str) -> str:
    """Return what an instrument is paid in; "USD" stands in where a recording does not say."""
    return quote or "USD"
