"""A reply of a server as it came: what its headers and its body say, whatever the protocol."""

import email.utils
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RawReply:
    """A reply of any status.

    Attributes:
        status: of HTTP.
        headers: of the reply; names in any case.
        text: the body, unpacked.
        url: where it came from, as messages show it: without secrets.
    """

    status: int
    headers: Mapping[str, str]
    text: bytes
    url: str

    @property
    def kind(self) -> str:
        """The media type, or "something"."""
        return self.headers.get("Content-Type", "something").partition(";")[0]

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asks to be left alone."""
        return retry_after(self.headers.get("Retry-After"))

    def json(self) -> Any:
        """The body as JSON. It is UTF-8 (or -16, or -32) as JSON demands, unless only the charset that the server names
        can be read.

        Raises:
            ValueError, RecursionError: it is none.
        """
        try:
            return json.loads(self.text)
        except UnicodeDecodeError:
            charset = self.headers.get("Content-Type", "").lower().partition("charset=")[2]
            try:
                return json.loads(self.text.decode(charset.partition(";")[0].strip(" \"'")))
            except LookupError:
                raise ValueError("neither UTF-8 nor a known charset") from None

    @property
    def said(self) -> str:
        """The server's explanation of an error; "" where it sent an HTML page."""
        try:
            body = self.json()
        except (ValueError, RecursionError):
            plain = self.text.decode(errors="replace").strip()
            return "" if plain.startswith("<") else plain
        found = [body.get(key) for key in ("error", "message", "detail")] if isinstance(body, dict) else []
        return _words(next((words for words in found if words), ""))


def error_in(reply: Any) -> str:
    """The error that a reply of status 200 holds in place of an answer, or ""."""
    found = [reply.get(key) for key in ("error", "errors")] if isinstance(reply, dict) else []
    return _words(next((words for words in found if words), ""))


def _words(said: Any) -> str:
    return str(said.get("message", said) if isinstance(said, dict) else said)


def retry_after(text: str | None) -> float | None:
    """Seconds of a Retry-After header: a number, or a date."""
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(text)
        # Dates in HTTP are in GMT, also where they name no zone.
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
