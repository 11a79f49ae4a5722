"""Words in messages."""


def counted(number: int, noun: str) -> str:
    """As in "1 image" and "2,000 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def printable(text: str) -> str:
    """Control characters, which a file's name or a server's message may hold, as their codes; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
