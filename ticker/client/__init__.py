"""A client of the protocol: what ``ticker watch`` is built on, and what a program may use as it is.

It knows the wire contract and nothing of the server's modules; it speaks to a Kraken v2 server as well.
"""

from ticker.client.connection import Connection as Connection
from ticker.client.connection import ConnectionLost as ConnectionLost
from ticker.client.connection import ConnectionRefused as ConnectionRefused
from ticker.client.connection import open_connection as open_connection
from ticker.client.remote import ActionRefused as ActionRefused
from ticker.client.replay import Replay as Replay
from ticker.client.replay import open_replay as open_replay
from ticker.client.stream import StateChange as StateChange
from ticker.client.stream import Subscription as Subscription
from ticker.client.stream import open_stream as open_stream
