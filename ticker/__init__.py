"""The service around the market: one port that streams ticks and takes orders.

Layers, outermost first: the command line and the composition root (``cli``, ``app``), the server and its sessions,
the broadcaster, the wire. ``ticker`` imports ``feeds``; the reverse never happens.
"""

from importlib.metadata import version

__version__ = version("ticker-market")
