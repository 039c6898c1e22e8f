"""The names under which instruments are offered, numbered densely.

An instrument has its symbol and perhaps aliases ("BTCUSDT", "BTC/USDT"). A client is answered under the name that it
asked for, so what is encoded and subscribed to is a *listing*: one name of one instrument. Listing ids below
``len(instruments)`` are the instruments' own symbols, in order; aliases follow.
"""

from __future__ import annotations

from feeds.instruments import Instrument, Instruments
from ticker.binary import RecordCodec
from ticker.codec import RowCodec
from ticker.errors import Code, RequestError
from ticker.wire import MAX_ECHO


class Listings:
    """All names of a market.

    Attributes:
        instruments: What is listed.
        names: Name by listing id.
        instrument_of: Instrument id by listing id.
        codecs: Row printer by listing id.
        quoted_codecs: The same with numbers as strings.
        record_codecs: Row packer by listing id.
        session: The replay session that this market is of, as every message of it says; empty for the server's own.
        first: What packed records, which have no room for the session, call listing 0; the others follow.
    """

    def __init__(self, instruments: Instruments, session: str = "", first: int = 0) -> None:
        self.instruments = instruments
        self.session = session
        self.first = first
        self.names = instruments.names
        self.instrument_of = [instruments.id_of(name) for name in self.names]
        self.codecs = [RowCodec(instruments[i], name) for name, i in zip(self.names, self.instrument_of, strict=True)]
        self.quoted_codecs = [
            RowCodec(instruments[i], name, quoted=True) for name, i in zip(self.names, self.instrument_of, strict=True)
        ]
        self.record_codecs = [RecordCodec(instruments[i]) for i in self.instrument_of]
        self._ids = {name: listing for listing, name in enumerate(self.names)}

    @property
    def label(self) -> dict[str, str]:
        """What a message of it says beside everything else."""
        return {"session": self.session} if self.session else {}

    def __len__(self) -> int:
        return len(self.names)

    def id_of(self, name: str) -> int:
        """Return the listing id of a name.

        Raises:
            RequestError: No such symbol; in Kraken's words.
        """
        listing = self._ids.get(name)
        if listing is None:
            shown = name[:MAX_ECHO]
            raise RequestError(f"Currency pair not supported {shown}", Code.UNKNOWN_SYMBOL, symbol=shown)
        return listing

    def instrument(self, name: str) -> Instrument:
        """Return the instrument that has a name.

        Raises:
            RequestError: No such symbol; in Kraken's words.
        """
        return self.instruments[self.instrument_of[self.id_of(name)]]
