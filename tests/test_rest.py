"""``/0/private/``: how a Kraken client gets its token, and what else somebody asks there."""

from __future__ import annotations

import json

import pytest

from tests.serving import House, open_house
from ticker.head import MAX_BODY_BYTES, Head
from ticker.orders.accounts import AccountOptions, Accounts, Token, new_token
from ticker.rest import Rest

PATH = "/0/private/GetWebSocketsToken"
FORM = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}
SIGNED = {**FORM, "api-key": "any", "api-sign": "any"}


async def answer(house: House, path: str = PATH, **lines: str) -> tuple[int, object]:
    status, body = await house.post(path, b"nonce=1768000000000", **{**SIGNED, **lines})
    return status, json.loads(body)


async def test_a_new_token_each_time_which_the_demo_account_takes() -> None:
    async with open_house() as house:
        answers = [await answer(house), await answer(house)]
        tokens = [said["result"]["token"] for _, said in answers]
        assert answers == [(200, {"error": [], "result": {"token": token, "expires": 900}}) for token in tokens]
        assert len(set(tokens)) == 2
        peer = await house.visit()
        assert (await peer.ask({"method": "cancel_all", "params": {"token": tokens[0]}}))["success"] is True


def test_with_accounts_the_key_is_a_token_and_nothing_else_is() -> None:
    token, digest = new_token()
    rest = Rest(Accounts({"alice": AccountOptions(balances={}, tokens=(Token(sha256=digest),))}))

    def ask(**headers: str) -> object:
        status, kind, body = rest.private(Head("POST", PATH, headers, "1.1", b""), b"")
        assert (status, kind) == (200, "application/json")
        return json.loads(body)

    assert ask(**{"api-key": token}) == {"error": [], "result": {"token": token, "expires": 900}}
    for headers in ({"api-key": digest}, {"api-key": "alice"}, {"api-key": f"{token}, {token}"}, {}):
        assert ask(**headers) == {"error": ["EAPI:Invalid key"]}


@pytest.mark.parametrize("method", ["Balance", "", "getwebsocketstoken"])
async def test_a_method_that_is_not_there_is_refused_as_kraken_does(method) -> None:
    async with open_house() as house:
        assert await answer(house, f"/0/private/{method}") == (200, {"error": ["EGeneral:Unknown method"]})


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ({"api-key": None}, 415),  # what a form of another site could send
        ({"origin": "http://evil.example"}, 403),
        ({"host": "evil.example"}, 403),
        ({"content-length": None}, 411),
        ({"content-length": str(MAX_BODY_BYTES + 1)}, 413),
    ],
)
async def test_who_may_not_or_says_it_wrongly_gets_no_token(lines, status) -> None:
    async with open_house() as house:
        got, body = await house.post(PATH, b"nonce=1", **{**SIGNED, **lines})
        assert (got, b"token" in body) == (status, False)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS"])
@pytest.mark.parametrize("path", [PATH, "/0/private/Balance"])
async def test_only_a_post_is_answered(method, path) -> None:
    async with open_house() as house:
        peer = house.dial()
        await peer.send(f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        answer = await peer.answer()
        assert answer.startswith(b"HTTP/1.1 405 ")
        assert b"\r\nallow: POST\r\n" in answer


@pytest.mark.parametrize("path", ["/0/", "/0/private", "/0/private/a/b", "/0/public/Time"])
async def test_nothing_else_takes_a_post(path) -> None:
    async with open_house() as house:
        assert (await house.post(path, b"nonce=1", **SIGNED))[0] == 405
