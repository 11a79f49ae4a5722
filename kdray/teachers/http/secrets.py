"""Keys from environment variables, which are kept out of everything that is written or shown."""

import html
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from kdray.errors import TeacherError

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SECRET = re.compile(r"auth|key|token|secret|cookie|passw|pwd|credential|signature|^sig$|^code$", re.IGNORECASE)
# Words of requests in which a key is looked for and is not: max_tokens, keywords, author.
_NO_SECRET = re.compile(
    r"\$\{\w+\}|tokens|tokeni[sz]|keyword|key_?point|key_?frame|author(?!i[sz])|^code$", re.IGNORECASE
)
_DIGITS = 6  # a whole number of fewer is no key
_MARK = re.compile(r"\$images?\b|^\$ids?$")
_SHORTEST = 4  # to replace a shorter value would also change text that is no secret


class Secrets:
    """Values of the environment variables that some texts name as `${NAME}`.

    Args:
        values: variable -> value.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)
        long = [name for name, value in self._values.items() if len(value) >= _SHORTEST]
        self._names = sorted(long, key=lambda name: len(self._values[name]), reverse=True)
        spellings = [f"({''.join(map(_spellings, self._values[name]))})" for name in self._names]
        self._pattern = re.compile("|".join(spellings) or "(?!)", re.IGNORECASE)

    @classmethod
    def read(cls, texts: Iterable[str], environ: Mapping[str, str]) -> "Secrets":
        """The variables that `texts` name, from `environ`.

        Raises:
            TeacherError: one is missing or empty, or no header could carry it.
        """
        names = sorted({name for text in texts for name in _VARIABLE.findall(text)})
        values = {name: environ.get(name, "").strip() for name in names}
        for name, value in values.items():
            if not value:
                raise TeacherError(
                    f"teacher.url, teacher.headers or teacher.request needs the environment variable {name}, which is "
                    f"not set; export {name}=... and start again"
                )
            if not value.isprintable():
                raise TeacherError(
                    f"the environment variable {name}, which teacher.url, teacher.headers or teacher.request needs, "
                    "holds a line break or another character that cannot be sent; export it again"
                )
        return cls(values)

    def with_those_of(self, other: "Secrets") -> "Secrets":
        """The values of both."""
        return Secrets(self._values | other._values)

    def fill(self, text: str, *, for_url: bool = False) -> str:
        """`text` with the values in place."""
        return _VARIABLE.sub(lambda m: quote(self._values[m[1]], safe="") if for_url else self._values[m[1]], text)

    def fill_json(self, text: str) -> str:
        """The JSON in `text` with the values in the texts and keys that name them."""
        names = {json.dumps(f"${{{name}}}")[1:-1]: json.dumps(value)[1:-1] for name, value in self._values.items()}
        return re.sub("|".join(map(re.escape, names)) or "(?!)", lambda match: names[match[0]], text)

    def redact(self, text: str) -> str:
        """`text` with ${NAME} in place of each value that a server or a library has put into it. Values are found also
        where they are spelled as in addresses, JSON or HTML, or were cut short ("sk-12...")."""
        text = self._pattern.sub(lambda match: f"${{{self._names[(match.lastindex or 1) - 1]}}}", text)
        if "..." in text:
            for name in self._names:
                for form in {self._values[name], quote(self._values[name], safe=""), repr(self._values[name])[1:-1]}:
                    for length in range(len(form) - 1, _SHORTEST - 1, -1):
                        text = text.replace(f"{form[:length]}...", f"${{{name}}}...")
        return text

    def __repr__(self) -> str:
        return f"Secrets({', '.join(sorted(self._values))})"


def is_secret(name: str) -> bool:
    """Whether a header or a part of an address of that name carries a key."""
    return bool(_SECRET.search(name))


def in_clear(text: str) -> bool:
    """Whether a value that should be a key names no environment variable."""
    return not _VARIABLE.search(text)


def key_in_clear(body: Any, name: str = "") -> str | None:
    """The name of a key that is written in clear in the body of a request, or None. All texts and large whole numbers
    below a name that stands for a key are keys, but for "$image" and the like.

    Args:
        name: of the key that `body` is the value of, where it stands for a secret.
    """
    if isinstance(body, dict):
        parts = [(part, str(key)) for key, part in body.items()]
        inner = ((part, key if is_secret(_NO_SECRET.sub("", key)) else name) for part, key in parts)
        return next((found for part, key in inner if (found := key_in_clear(part, key)) is not None), None)
    if isinstance(body, list):
        return next((found for part in body if (found := key_in_clear(part, name)) is not None), None)
    if isinstance(body, str):
        return name if name and body.strip() and in_clear(body) and not _MARK.search(body) else None
    number = isinstance(body, int) and not isinstance(body, bool) and len(str(abs(body))) >= _DIGITS
    return name if name and number else None


def texts_in(body: Any) -> list[str]:
    """All texts in JSON values, keys too."""
    if isinstance(body, dict):
        return [text for key, part in body.items() for text in (str(key), *texts_in(part))]
    if isinstance(body, list):
        return [text for part in body for text in texts_in(part)]
    return [body] if isinstance(body, str) else []


def _spellings(character: str) -> str:
    """A pattern for the ways in which a server may spell one character of a value."""
    if character.isascii() and character.isalnum():
        return character
    code = ord(character)
    escaped = {json.dumps(character)[1:-1], ascii(character)[1:-1], f"\\{character}"}
    patterns = [rf"\\+{re.escape(way[1:])}" for way in sorted(escaped) if way.startswith("\\")]  # also escaped twice
    patterns += ["".join(f"%(?:25)*{byte:02x}" for byte in character.encode())]  # also quoted twice
    patterns += [re.escape(html.escape(character)), f"&#0*{code};", f"&#x0*{code:x};", re.escape(character)]
    patterns += [r"\+"] if character == " " else []
    return f"(?:{'|'.join(patterns)})"
