"""Errors of the market layer. A leaf: it imports nothing of the project.

Every one of them is a mistake that the user can mend (a missing file, a bad option), so each message
names the thing and says what to do next. Anything else that a feed raises is a defect of ours.
"""

from __future__ import annotations


class FeedError(Exception):
    """A feed cannot go on, and running it again would not help."""


class RecordingError(FeedError):
    """A recording is missing, unreadable or not in the layout of ``feeds.store``."""


class UnknownSymbolError(FeedError, LookupError):
    """A symbol is not one of the instruments of this market."""


class OptionError(ValueError):
    """An option of a feed has a value that it does not allow; the text names both."""
