"""Addresses in messages: without what may be a key to whatever is there."""

import re
from collections.abc import Collection

# With the slashes of JSON in a text, too. Without a host it is no address: "is it https://?"
_ADDRESS = re.compile(r"((?:\\?/){2})([^\s/?#'\"<>\\]+)([^\s?#'\"<>]*)([?#][^\s'\"<>]*)?")


def bare(address: str) -> str:
    """An address without its query, its fragment, and the user name and password in it; also a relative one."""
    return bare_in(re.split("[?#]", address, maxsplit=1)[0])


def bare_in(text: str, known: Collection[str] = ()) -> str:
    """`text` with every address in it made `bare`.

    Args:
        known: addresses with queries that may be shown.
    """
    kept = [address for address in known if "?" in address]

    def shown(match: re.Match[str]) -> str:
        for address in kept:
            place = text.find(address, max(0, match.start() - len("https:")), match.end())
            if place >= 0 and match.end() - place - len(address) <= 1:  # a colon may follow
                return match[0]
        return f"{match[1]}{match[2].rpartition('@')[2]}{match[3]}"

    return _ADDRESS.sub(shown, text)
