"""What messages have in common: how many names, how much of each, and whether advice is in it."""

MOST_NAMED = 5
_LONGEST_NAME = 80


class NotWeightsError(ValueError):
    """A file is whole, but not what is looked for; the message says what to do."""


def shortened(name: str) -> str:
    """A name, or its beginning: a file may call its parts anything."""
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"


def few(names: list[str]) -> str:
    """The first of many names, and how many more there are."""
    text = ", ".join(map(shortened, names[:MOST_NAMED]))
    return f"{text} and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else text
