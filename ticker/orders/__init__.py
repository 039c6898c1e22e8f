"""Orders: taken from sessions by the gateway, entered and filled by the exchange, told to their account.

Data flows one way: session -> gateway -> exchange -> reply, then reports. One task, :meth:`Gateway.run`, is the only
writer of the exchange.
"""
