"""Accounts: the file that names them, and tokens."""

from __future__ import annotations

import hashlib

import pytest

from tests.scripted import INSTRUMENTS
from ticker.errors import Code, ConfigError, RequestError
from ticker.orders.accounts import DEMO, demo_accounts, new_token, read_accounts
from ticker.orders.models import MakerTaker

TOKEN, DIGEST = new_token()
FILE = f"""
[accounts.alice]
tokens = [{{ sha256 = "{DIGEST}", scopes = ["read"] }}]
balances = {{ USD = "100000", BTC = "1.5" }}
maker_bps = 16.0
[accounts.alice.limits]
open_orders = 200
[accounts.bob]
balances = {{}}
"""


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "accounts.toml").write_text(text)
        return str(tmp_path / "accounts.toml")

    return write


def test_a_file_names_accounts(file):
    accounts = read_accounts(file(FILE))
    alice = accounts.options["alice"]
    assert (alice.balances["BTC"], alice.maker_bps, alice.taker_bps, alice.limits.open_orders) == ("1.5", 16, 40, 200)
    grant = accounts.grant(TOKEN)
    assert (grant.account, grant.scopes) == ("alice", ("read",))
    with pytest.raises(RequestError) as error:
        grant.check("trade")
    assert error.value.code is Code.PERMISSION_DENIED


@pytest.mark.parametrize("token", ["", "x", DIGEST, TOKEN[:-1], TOKEN + "\n"])
def test_any_other_token_gives_nothing(file, token):
    with pytest.raises(RequestError) as error:
        read_accounts(file(FILE)).grant(token)
    assert (error.value.code, error.value.text) == (Code.INVALID_TOKEN, "EAPI:Invalid key")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[accounts.alice]\n", "balances"),
        ('[accounts."a b"]\nbalances = {}\n', "accounts"),
        ('[accounts.a]\nbalances = { USD = "1e5" }\n', "accounts.a.balances.USD"),
        ('[accounts.a]\nbalances = { USD = "-1" }\n', "accounts.a.balances.USD"),
        ("[accounts.a]\nbalances = { USD = 1.5 }\n", "balances"),
        ('[accounts.a]\nbalances = {}\ntokens = [{ sha256 = "abc" }]\n', "sha256"),
        (FILE.replace('"read"', '"all"'), "scopes"),
        ("[accounts.a]\nbalances = {}\nmaker_bp = 1\n", "maker_bp"),
        (FILE + f'tokens = [{{ sha256 = "{DIGEST}" }}]\n', r"accounts\.bob\.tokens: .* accounts\.alice"),
        (FILE.replace("tokens = [", f'tokens = [{{ sha256 = "{DIGEST}" }}, '), r"accounts\.alice\.tokens"),
        ("[accounts.a\n", "TOML"),
        ("", "accounts"),
    ],
)
def test_a_mistake_in_the_file_is_named(file, text, named):
    with pytest.raises(ConfigError, match=named):
        read_accounts(file(text))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        read_accounts(str(tmp_path / "nowhere.toml"))


def test_without_a_file_everybody_trades_on_one_account():
    accounts = demo_accounts(INSTRUMENTS)
    assert {accounts.grant(token).account for token in ("", "any")} == {DEMO}
    assert accounts.options[DEMO].balances.keys() == {"BTC", "USD", "ETH", "USDT"}


def test_tokens_are_long_and_never_the_same():
    tokens = [new_token() for _ in range(100)]
    assert len({token for token, _ in tokens}) == 100
    assert all(len(token) >= 43 for token, _ in tokens)  # 32 bytes in base64
    assert all(digest == hashlib.sha256(token.encode()).hexdigest() for token, digest in tokens)


@pytest.mark.parametrize(("cost", "maker", "fee"), [(10**6, True, 1600), (10**6, False, 2600), (1, False, 0)])
def test_a_fee_is_a_share_of_the_cost_rounded_down(cost, maker, fee):
    assert MakerTaker(1600, 2600).fee(cost, maker=maker) == fee
