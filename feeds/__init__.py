"""The market without a network: records, instruments, books, clocks, simulation, replay.

Nothing in this package opens a socket or knows a wire format. A feed writes :class:`~feeds.records.Batch`
objects to a :class:`trio.abc.SendChannel`; whoever holds the other end is none of its business.
"""
