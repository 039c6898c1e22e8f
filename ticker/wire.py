"""Every control message of the protocol, and how requests are read.

Kraken WebSocket v2 is the dialect: keys are Kraken's, unknown keys are ignored. Numbers of a request are read as
:class:`~decimal.Decimal`, exactly as the client wrote them. Rows of market data are printed by :mod:`ticker.codec`.
This module must not know sessions, markets or sockets.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, ClassVar, Final, Literal, NoReturn, TypeVar, get_args

import msgspec
from msgspec import UNSET, UnsetType

from feeds.errors import OptionError
from feeds.instants import parse_instant
from ticker.errors import Code, RequestError

API_VERSION: Final = "v2"
#: JSON deeper than this is refused; no request needs more than four.
MAX_DEPTH: Final = 8
#: No price or quantity is near 1e30, and 1e400 must not become an integer of 400 digits.
MAX_EXPONENT: Final = 30
#: How much of a client's text an error repeats.
MAX_ECHO: Final = 256


class Request(msgspec.Struct, frozen=True):
    """The envelope of every request; ``params`` are read by :func:`params_of` once the method is known."""

    method: str
    params: dict[str, Any] | None = None
    req_id: int | UnsetType = UNSET


class Resume(msgspec.Struct, frozen=True):
    """Where a returning subscriber stands.

    Attributes:
        epoch: The numbering that it knew.
        after: Position of the last event that it knows; by symbol where it subscribes to several.
    """

    epoch: str
    after: int | dict[str, int]


Trigger = Literal["trades", "bbo"]
Mode = Literal["merge", "batch", "raw"]
OnSlow = Literal["conflate", "drop_oldest", "disconnect"]
Numbers = Literal["number", "string"]
Encoding = Literal["json", "struct"]


class SubscribeParams(msgspec.Struct, frozen=True):
    """Parameters of ``subscribe``, ``unsubscribe`` and ``resync``; which of them count depends on the channel.

    ``session`` is the replay session whose market is meant; without it, the server's own.
    """

    #: Fields of the native profile, which mean nothing to plain clients.
    NATIVE: ClassVar[tuple[str, ...]] = (
        "interval_ms", "mode", "on_slow", "numbers", "encoding", "resume", "session",
    )  # fmt: skip

    #: Fields whose unknown words are those of another version, and passed over: the reply says what was granted.
    WORDS: ClassVar[dict[str, tuple[str, ...]]] = {
        "event_trigger": get_args(Trigger),
        "mode": get_args(Mode),
        "on_slow": get_args(OnSlow),
        "numbers": get_args(Numbers),
        "encoding": get_args(Encoding),
    }

    channel: str
    symbol: str | list[str] | UnsetType = UNSET
    snapshot: bool | UnsetType = UNSET
    event_trigger: Trigger | UnsetType = UNSET
    depth: int | UnsetType = UNSET
    interval: int | UnsetType = UNSET
    interval_ms: int | UnsetType = UNSET
    mode: Mode | UnsetType = UNSET
    on_slow: OnSlow | UnsetType = UNSET
    numbers: Numbers | UnsetType = UNSET
    encoding: Encoding | UnsetType = UNSET
    resume: Resume | UnsetType = UNSET
    session: str | UnsetType = UNSET

    @property
    def symbols(self) -> list[str]:
        """The symbols asked for; empty if none were given."""
        return _listed(self.symbol)


def _listed(symbol: str | list[str] | UnsetType) -> list[str]:
    if symbol is UNSET:
        return []
    return [symbol] if isinstance(symbol, str) else symbol


class UpdateParams(msgspec.Struct, frozen=True):
    """Parameters of ``update_subscription``."""

    sub_id: int
    interval_ms: int


#: RFC 3339, "+90s" after the start of the tape, or ns UTC.
Instant = str | int


class ReplayStartParams(msgspec.Struct, frozen=True):
    """Parameters of ``replay_start``.

    Attributes:
        source: A name of those that ``replay_sources`` lists.
        session: The session to join, or to begin under this name; without one, a new session of one's own.
        symbol: Only these of the recording.
        start: "from": the tape begins here instead of at its first row.
        end: "to": nothing of the tape at or after this instant is played.
        speed: Tape seconds per second; 0: as fast as the slowest lossless subscriber reads.
        start_paused: Whether it waits for ``resume``.
        loop: Whether it begins again at the end.
        gap: "keep", "skip" or "cap:SECONDS".
    """

    NUMBERS: ClassVar[tuple[str, ...]] = ("speed",)

    source: str
    session: str | UnsetType = UNSET
    symbol: str | list[str] | UnsetType = UNSET
    start: Instant | UnsetType = msgspec.field(name="from", default=UNSET)
    end: Instant | UnsetType = msgspec.field(name="to", default=UNSET)
    speed: Decimal = Decimal(1)
    start_paused: bool = False
    loop: bool = False
    gap: str = "keep"

    @property
    def symbols(self) -> list[str]:
        """The symbols asked for; empty if none were given."""
        return _listed(self.symbol)


class ReplayAction(msgspec.Struct, frozen=True):
    """What is to become of a replay: the body of ``POST /api/replay``, and with a session ``replay_control``.

    Attributes:
        action: What to do.
        to: ``seek``: where to; ``step``: how far. The first row at or after it is the next.
        speed: ``speed``: tape seconds per second; 0: as fast as possible.
        events: ``step``: how many events; 1 if neither this nor ``to`` is given.
    """

    NUMBERS: ClassVar[tuple[str, ...]] = ("speed",)

    action: Literal["pause", "resume", "seek", "speed", "step", "stop"]
    to: Instant | UnsetType = UNSET
    speed: Decimal | UnsetType = UNSET
    events: Annotated[int, msgspec.Meta(ge=1)] | UnsetType = UNSET


class ReplayControlParams(ReplayAction, frozen=True, kw_only=True):
    """Parameters of ``replay_control``; ``leave`` is to go without stopping it."""

    action: Literal["pause", "resume", "seek", "speed", "step", "stop", "leave"]  # type: ignore[assignment]
    session: str


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to a request; a subscribe has one per symbol.

    Attributes:
        method: What was asked for; absent where the request could not be read.
        result: After success: parameters that can be sent back as they are, or the order's ids.
        error: After failure: Kraken's words.
        symbol: After a failed subscribe: which symbol failed.
        ext: Native profile: what goes beyond Kraken.
        time_in: RFC 3339: when the request was received.
        time_out: RFC 3339: when this was sent.
    """

    method: str | UnsetType = UNSET
    result: Any = UNSET
    error: str | UnsetType = UNSET
    symbol: str | UnsetType = UNSET
    success: bool | UnsetType = UNSET
    ext: dict[str, Any] | UnsetType = UNSET
    time_in: str
    time_out: str
    req_id: int | UnsetType = UNSET


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message of a channel whose rows are not market data; ``session`` where it is of a replay session."""

    channel: str
    type: Literal["snapshot", "update"]
    session: str | UnsetType = UNSET
    data: Any


class StatusRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What ``status`` says, on connecting and when it changes.

    Attributes:
        system: ``online`` or ``maintenance``.
        mode: ``sim``, ``replay`` or ``relay``: nothing simulated or replayed is labelled live.
        reconnect_after_ms: Before a planned stop: when it is worth coming back.
        epoch: Native profile: the present numbering.
        limits: Native profile: what one address, connection and account may do.
        orders: Native profile: whether orders outlive the server: ``durable``, ``memory`` or ``unavailable``.
        source: Native profile: the recording of a replay.
        speed: Native profile: tape seconds per second of a replay; 0: as fast as possible.
        model, seed: Native profile: of a simulation.
    """

    system: Literal["online", "maintenance"]
    api_version: str
    connection_id: int
    version: str
    mode: str
    reconnect_after_ms: int | UnsetType = UNSET
    epoch: str | UnsetType = UNSET
    limits: dict[str, Any] | UnsetType = UNSET
    orders: str | UnsetType = UNSET
    source: str | UnsetType = UNSET
    speed: float | UnsetType = UNSET
    model: str | UnsetType = UNSET
    seed: int | UnsetType = UNSET


def slow_consumer(sub_id: int, lag_ms: int, conflated: int, dropped: int) -> dict[str, Any]:
    """Return a row of ``notice``: for how long a socket took nothing, and what that cost one of its subscriptions."""
    code = Code.SLOW_CONSUMER
    row: dict[str, Any] = {"code": int(code), "name": code.name, "sub_id": sub_id}
    return row | {"lag_ms": lag_ms, "conflated": conflated, "dropped": dropped}


class NativeHeartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """A heartbeat of the native profile.

    Attributes:
        channel: ``heartbeat``.
        ts: RFC 3339.
        data: A row per subscription: sub_id, last, state, age_ms.
    """

    channel: str = "heartbeat"
    ts: str
    data: list[dict[str, Any]]


#: The WebSocket subprotocol of the native profile.
NATIVE: Final = "ticker.v1"


class MalformedRequestError(RequestError):
    """JSON that is not a request.

    Attributes:
        request: What could be read of it, so that the reply says which request it is about.
    """

    def __init__(self, text: str, raw: object, code: Code = Code.INVALID_REQUEST) -> None:
        super().__init__(text, code)
        fields = raw if isinstance(raw, dict) else {}
        method, req_id = fields.get("method"), fields.get("req_id")
        if not isinstance(method, str):
            method = ""
        self.request = Request(
            method.encode(errors="ignore").decode(),  # half of a surrogate pair cannot be sent back
            req_id=req_id if type(req_id) is int else UNSET,
        )


HEARTBEAT: Final = b'{"channel":"heartbeat"}'

encode = msgspec.json.Encoder(decimal_format="number").encode

_FIELD: Final = re.compile(r"(?:at `\$\.|field `)(\w+)")
#: A string of JSON, the last one perhaps without its end.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
#: For :meth:`bytes.translate`: what makes all brackets square, and what is none.
_SQUARE: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
#: A step of the path of a validation error: into a field, or into an item of a list.
_STEP: Final = re.compile(r"\.(\w+)|(\[)")
_Params = TypeVar("_Params", bound=msgspec.Struct)


def decode_request(text: str) -> Request:
    """Read a request.

    Raises:
        RequestError: It is not JSON of the accepted kind (NaN, Infinity, duplicate keys, integers beyond 64 bits,
            lone surrogates and depth over 8 are refused), or not a request.
    """
    raw = _loads(text)
    if not isinstance(raw, dict) or "method" not in raw:
        raise MalformedRequestError("a request is an object with a method", raw)
    try:
        return msgspec.convert(raw, Request)
    except msgspec.ValidationError as error:
        raise MalformedRequestError(f"malformed request: {error}"[:MAX_ECHO], raw) from None


class _Envelope(msgspec.Struct):
    method: str = ""
    req_id: int | UnsetType = UNSET


_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)


def envelope_of(text: str) -> Request:
    """Return method and ``req_id`` of a request that is refused unread, empty if it is none.

    For who asks too often: 1 µs, where reading a batch of orders takes 40.
    """
    try:
        envelope = _ENVELOPE.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return Request("")
    return Request(envelope.method, req_id=envelope.req_id)


def subscription_of(request: Request, *, native: bool) -> SubscribeParams:
    """Read the parameters of ``subscribe``, ``unsubscribe`` or ``resync``.

    To a plain client the native profile's keys are unknown ones, and passed over whatever they hold.

    Raises:
        RequestError: A field is missing or has the wrong type; the text names it.
    """
    if not native and request.params:
        params = {field: value for field, value in request.params.items() if field not in SubscribeParams.NATIVE}
        request = msgspec.structs.replace(request, params=params)
    return params_of(request, SubscribeParams)


def params_of(request: Request, kind: type[_Params]) -> _Params:
    """Read a request's parameters.

    Raises:
        RequestError: A field is missing or has the wrong type; the text names it.
    """
    given, words = request.params or {}, getattr(kind, "WORDS", {})
    if words:
        given = {
            field: value
            for field, value in given.items()
            if field not in words or not isinstance(value, str) or value in words[field]
        }
    for path in getattr(kind, "NUMBERS", ()):
        if any(isinstance(value, str) for value in _values_at(given, path)):
            where = path.replace("[]", "[...]")  # as validation errors have it
            text = f"{request.method}: Expected a number, got `str` - at `$.{where}`"
            raise RequestError(text, Code.INVALID_FIELD, field=_FIELD.findall(text)[0])
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        found = _FIELD.search(str(error))
        text, field = f"{request.method}: {error}"[:MAX_ECHO], found[1] if found else None
        if words := _words_at(str(error), kind):
            text += f", which is one of {', '.join(words)}"
        raise RequestError(text, Code.INVALID_FIELD, field=field) from None


def _values_at(given: Any, path: str) -> list[Any]:  # noqa: ANN401 - JSON
    """Return what is at a path such as ``triggers.price`` or, of every item of a list, ``orders[].order_qty``."""
    name, _, rest = path.partition(".")
    found = given.get(name.removesuffix("[]")) if isinstance(given, dict) else None
    values = (found if isinstance(found, list) else []) if name.endswith("[]") else [found]
    return [inner for value in values for inner in _values_at(value, rest)] if rest else values


def _words_at(error: str, kind: type[msgspec.Struct]) -> list[str]:
    """Return the words that are allowed where a validation error says that it is, none where any word is."""
    parts = _parts([msgspec.inspect.type_info(kind)])
    for name, item in _STEP.findall(error.rpartition(" - at `$")[2]):
        if item:
            parts = _parts([part.item_type for part in parts if isinstance(part, msgspec.inspect.CollectionType)])
        else:
            structs = [part for part in parts if isinstance(part, msgspec.inspect.StructType)]
            parts = _parts([field.type for part in structs for field in part.fields if field.encode_name == name])
    return [str(word) for part in parts if isinstance(part, msgspec.inspect.LiteralType) for word in part.values]


def _parts(types: list[msgspec.inspect.Type]) -> list[msgspec.inspect.Type]:
    return [part for found in types for part in getattr(found, "types", (found,))]


def params_in(text: str, what: str, kind: type[_Params]) -> _Params:
    """Read the JSON body of a page request as strictly as a request's parameters.

    Args:
        text: The body.
        what: What the error calls it.
        kind: What it is to be.

    Raises:
        RequestError: It is not JSON of the accepted kind, or a field is missing or has the wrong type.
    """
    raw = _loads(text)
    if not isinstance(raw, dict):
        raise RequestError(f"{what}: the body is an object", Code.INVALID_REQUEST)
    return params_of(Request(what, raw), kind)


def instant_ns(value: Instant, field: str, start_ns: int) -> int:
    """Return an instant (int ns UTC) that a client gave.

    Args:
        value: As text, see :func:`feeds.instants.parse_instant`, or ns UTC.
        field: Where it was given.
        start_ns: What "+90s" is counted from, ns UTC.

    Raises:
        RequestError: It is no instant; the text names the field.
    """
    if isinstance(value, int):
        return value
    try:
        return parse_instant(value, start_ns)
    except OptionError as error:
        raise RequestError(f"{field}: {error}"[:MAX_ECHO], Code.BAD_TIME, field=field) from None


def _loads(text: str) -> Any:  # noqa: ANN401 - JSON
    if _depth_over(text, MAX_DEPTH):
        raise RequestError(f"JSON deeper than {MAX_DEPTH}", Code.INVALID_JSON)
    try:
        value = _STRICT.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise MalformedRequestError("a string holds half of a surrogate pair", value, Code.INVALID_JSON) from None
    except ValueError as error:
        raise MalformedRequestError(f"invalid JSON: {error}"[:MAX_ECHO], _lax(text), Code.INVALID_JSON) from None
    return value


def _lax(text: str) -> Any:  # noqa: ANN401 - JSON
    """Return what is refused here but is JSON elsewhere, a number out of range, so that the reply can name it."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _depth_over(text: str, limit: int) -> bool:
    """Whether brackets nest deeper than ``limit``; those inside strings, and closing ones too many, do not count."""
    if text.count("[") + text.count("{") <= limit:
        return False
    brackets = _STRING.sub(b"", text.encode()).translate(_SQUARE, _NO_BRACKETS)
    brackets += b"]" * brackets.count(b"[")  # what is never closed is as deep
    for _ in range(limit):
        brackets = brackets.replace(b"[]", b"")  # the innermost pairs go
    return b"[" in brackets


def _number(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:  # an exponent beyond what a decimal holds
        raise ValueError(f"number out of range: {text[:32]}") from None
    if not value.is_finite() or abs(value.adjusted()) > MAX_EXPONENT:
        raise ValueError(f"number out of range: {text[:32]}")
    return value


def _integer(text: str) -> int:
    value = int(text) if len(text) <= 20 else 2**64
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"integer beyond 64 bits: {text[:32]}")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has a key twice")
    return value


#: Made once: json.loads would make one for every request.
_STRICT: Final = json.JSONDecoder(
    parse_float=_number, parse_int=_integer, parse_constant=_constant, object_pairs_hook=_unique
)
