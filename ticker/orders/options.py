"""What can be set about orders."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ticker.orders.models import LatencyOptions


class OrdersOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How orders are kept and who may trade.

    Attributes:
        journal: The file that makes orders durable, or ``:memory:``. Empty: one in the user's data folder for each
            market and port, and ``:memory:`` where the port is whatever is free.
        accounts: The TOML file of accounts, see :mod:`ticker.orders.accounts`. Empty: one demo account for everybody.
        remembered: How many orders that have ended are remembered, with their ``cl_ord_id``.
        latency: How long requests are on their way to the exchange.
    """

    journal: str = ""
    accounts: str = ""
    remembered: Annotated[int, msgspec.Meta(ge=0)] = 100_000
    latency: LatencyOptions = LatencyOptions()
