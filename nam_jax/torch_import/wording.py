"""How many names, and how much of each, stand in a message."""

MOST_NAMED = 5
_LONGEST_NAME = 80


def shortened(name: str) -> str:
    """A name, or its beginning: a file may call its parts anything."""
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"


def listed(names: list[str]) -> str:
    """The first of many names, and how many more there are."""
    text = ", ".join(map(shortened, names[:MOST_NAMED]))
    return f"{text} and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else text
