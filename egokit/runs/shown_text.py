"""How a text that somebody else wrote is shown: on one line, with nothing hidden in it, and not for pages on end.

File names, narrations, run names and messages come from anywhere. A terminal obeys some characters, others reverse or
cover what stands beside them, and most can't be seen. HTML needs notebook/safe_html.py as well.
"""
import unicodedata

MAX_SHOWN = 1000  # characters
MAX_MARKS = 4     # accents on one letter; a pile of them covers the lines above it
JOINERS = "\u00a0\u200c\u200d\u3000"  # spaces and joiners that French, Persian, Japanese and emoji are written with


def shown(value, limit: int = MAX_SHOWN) -> str:
    """Return a value as text in which every character can be seen, shortened to `limit` characters.

    Line ends, control characters, marks that change the direction of writing and other invisible characters become
    escapes as in Python, such as \\n or \\x1b. Anything else stays as it is.
    """
    text = str(value)
    visible = text[:limit + 1]
    if not (visible.isascii() and visible.isprintable()):
        visible = _escape_invisible(visible)
    return visible if len(visible) <= limit else f"{visible[:limit - 2]} …"


def _escape_invisible(text: str) -> str:
    characters, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        seen = (character.isprintable() and marks <= MAX_MARKS) or character in JOINERS
        characters.append(character if seen else character.encode("unicode_escape").decode())
    return "".join(characters)
