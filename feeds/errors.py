"""Errors of the market layer. A leaf: it imports nothing of the project.

Every one of them is a mistake that the user can mend (a missing file, a bad option), so each message
names the thing and says what to do next. Anything else that a feed raises is a defect of ours.
"""

from __future__ import annotations


class FeedError(Exception):
    """A feed cannot go on, and running it again would not help."""


class RecordingError(FeedError):
    """A recording is missing, unreadable or not in the layout of ``feeds.layout``."""


class UnknownSymbolError(FeedError, LookupError):
    """A symbol is not one of the instruments of this market."""


class OptionError(ValueError):
    """An option of a feed has a value that it does not allow; the text names both."""


def check_options(options: object, *allowed: tuple[str, bool, str]) -> None:
    """Look at one option after the other.

    Args:
        options: Have them as attributes.
        *allowed: Of each its name, whether its value is allowed, and what is.

    Raises:
        OptionError: At the first that is not.
    """
    for name, fine, what in allowed:
        if not fine:
            value = repr(getattr(options, name))
            value = value if len(value) <= 60 else value[:57] + "..."
            raise OptionError(f"{name}: {value} is not allowed; allowed is {what}")
