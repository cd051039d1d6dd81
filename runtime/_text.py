"""Other people's text, made fit for a terminal or a page."""


def printable(text: str) -> str:
    """The text with escapes for what is not printable, so that it moves no cursor and begins no line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
