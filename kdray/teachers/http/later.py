"""Results that come later: where a server that answers 202 will have them, and whether they are there."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from kdray.teachers.http.malformed import MalformedReply
from kdray.teachers.http.paths import Path, follow

if TYPE_CHECKING:
    from kdray.teachers.http.raw import RawReply
    from kdray.teachers.http.reply import HttpPoll

_PORTS = {"http": 80, "https": 443}


def result_address(reply: RawReply, base: str, path: Path | None) -> str | None:
    """Where the result will be: at `path` in the body, or in a header; None where the reply does not say.

    Args:
        base: what a relative address is relative to.
    """
    found = reply.headers.get("Location") or reply.headers.get("Operation-Location")
    if path is not None:
        try:
            found = follow(reply.json(), path)
        except (MalformedReply, ValueError, RecursionError):
            return None
    if not isinstance(found, str) or not found:
        return None
    try:
        return urljoin(base, found)
    except ValueError:  # of brackets that hold no IPv6 address; `same_host` refuses it
        return found


def same_host(address: str, base: str) -> bool:
    """Whether two addresses have one scheme, host and port: then a key for one may be sent to the other."""
    try:
        first, second = (
            (parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme))
            for parts in (urlsplit(address), urlsplit(base))
        )
    except ValueError:
        return False
    return first == second and "@" not in urlsplit(address).netloc


def is_pending(reply: RawReply, poll: HttpPoll) -> bool:
    """Whether a reply of success says that the result is not there yet."""
    if poll.status is None or not 200 <= reply.status < 300:
        return False
    try:
        word = follow(reply.json(), poll.status)
    except (MalformedReply, ValueError, RecursionError):
        return False
    return isinstance(word, str) and word.casefold() in {known.casefold() for known in poll.pending}
