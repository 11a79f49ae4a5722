"""A teacher behind HTTP: one request as a coroutine.

Every way a request can end is classified by two questions: may it be billed, and can asking again help? In doubt it
counts as billed.
"""

import asyncio
import hashlib
import json
import ssl
import time
from collections import Counter
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import aiohttp
from torch import Tensor

from kdray.errors import TeacherError
from kdray.ledger.records import hash_images
from kdray.teachers.answers import Answers
from kdray.teachers.base import count_in
from kdray.teachers.faults import Fault, FaultKind
from kdray.teachers.http.addresses import bare, bare_in
from kdray.teachers.http.later import is_pending, result_address, same_host
from kdray.teachers.http.malformed import AmbiguousReply, MalformedReply
from kdray.teachers.http.raw import RawReply, error_in
from kdray.teachers.http.secrets import Secrets
from kdray.teachers.http.section import HttpTeacherConfig
from kdray.teachers.http.wire import Wire

_CONNECT_S = 10.0
_IDLE_S = 3.0  # servers drop idle connections after 5 s and more; a request sent into a closing one would be lost
_MOST_CHARACTERS = 200  # of a server's own words in a message
_POLL_S = 1.0  # between looks for a result, where the server does not say
_LEAST_POLL_S = 0.05
_SAME = 409  # the first try of these images, with the same Idempotency-Key, is still worked on
_THROTTLED = (429, 503, _SAME)
_NO_METADATA = (404, 405, 501)
_DECLINED = (400, 415, 422)
_UNREAD = (408, 425)  # the server gave up before it had the request

_T = TypeVar("_T")


class HttpTeacher:
    """Asks a server.

    Args:
        section: its section of the config.
        wire: the format of requests and replies.
        identity: names the model behind the server and the form of the answers.
        secrets: the values for the variables in the section's url, headers and request.
    """

    def __init__(self, section: HttpTeacherConfig, wire: Wire, *, identity: str, secrets: Secrets) -> None:
        self.identity, self.num_classes, self.metered = identity, count_in(section.classes), section.metered
        self._section, self._wire, self._secrets = section, wire, secrets
        self._looked = wire.about is None
        self._replies: Counter[str] = Counter()  # without answers, by the key of the images

    @property
    def batch_limit(self) -> int | None:
        """Images a request that the server says it takes, where it says so."""
        return self._wire.batch_limit

    def session(self) -> aiohttp.ClientSession:
        """A session for `ask`, to be closed by the caller; must be made inside the event loop that uses it."""
        # Reading the authorities takes a tenth of a second: now, before a first request has a permit and waits for it.
        timeout_s = self._section.timeout_s
        secure = self._wire.url.startswith("https")
        context = ssl.create_default_context(cafile=self._section.ca) if secure else True
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S, ssl=context),
            # Half the time at most: where connecting takes too long, it is certain that nothing was sent.
            timeout=aiohttp.ClientTimeout(total=timeout_s, connect=min(_CONNECT_S, timeout_s / 2)),
            headers={name: self._secrets.fill(text) for name, text in self._section.headers.items()},
        )

    async def ask(self, session: aiohttp.ClientSession, images: Tensor) -> Answers | Fault:
        """Send one request for uint8 images [B, C, H, W]. A fault of the server or the network is returned, not raised.

        Before the first request the server is asked about the model, free of charge, unless `look` has done so.
        """
        if (fault := await self._learn(session)) is not None:
            return replace(fault, kind="unsent") if fault.kind in ("lost", "malformed") else fault
        key = self._key(images)
        result = await self._exchange(session, images, _after(key, self._replies[key]))
        if result.replied if isinstance(result, Fault) else result.bad:
            self._replies[key] += 1
        return result

    def _key(self, images: Tensor) -> str:
        """Of a request: for all tries of these images the same, also in another process."""
        return hashlib.blake2b(b"".join([self.identity.encode(), *hash_images(images)]), digest_size=16).hexdigest()

    def note_replies(self, images: Tensor, replies: int) -> None:
        """See `kdray.teachers.base.CountsReplies`."""
        key = self._key(images)
        self._replies[key] = max(self._replies[key], replies)

    async def _exchange(self, session: aiohttp.ClientSession, images: Tensor, key: str) -> Answers | Fault:
        """One request, and what its reply says."""
        text = json.dumps(self._wire.request(images))
        body = (text if self._section.request is None else self._secrets.fill_json(text)).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        began = time.monotonic()
        raw = await self._send(session, "POST", self._wire.url, body, headers)
        if isinstance(raw, RawReply) and (raw.status == 202 or is_pending(raw, self._section.poll)):
            raw = await self._later(session, raw, began)
        if isinstance(raw, Fault):
            return raw
        result = self._read(raw, len(images))
        return replace(result, replied=raw.status != _SAME) if isinstance(result, Fault) else result

    def _read(self, raw: RawReply, batch: int) -> Answers | Fault:
        """The answers to `batch` images in a reply, or the fault that it stands for."""
        reply = self._json(raw)
        if isinstance(reply, Fault):
            return reply
        try:
            answers = self._wire.answers(reply, batch)
        except AmbiguousReply as reason:
            return self.fault("failed", str(reason))
        except MalformedReply as reason:
            return self.fault("malformed", self._no_answer(raw, reply, str(reason)))
        # A reason may be of a kind of its own, an `UnknownClass`
        return replace(answers, bad={row: type(reason)(self._clean(reason)) for row, reason in answers.bad.items()})

    def _no_answer(self, raw: RawReply, reply: Any, reason: str) -> str:
        """Why a reply of success holds no answer."""
        if said := error_in(reply):
            return f"{raw.url} replied with an error: {self._cut(said)}"
        if raw.status == 202:
            return f"{raw.url} answers 202 and does not say where the result will be; see teacher.poll"
        return reason

    async def look(self) -> None:
        """Ask the server about the model, free of charge, where its protocol has that.

        Raises:
            TeacherError: no server answers, there is no such model, the key is refused, or the model does not fit.
        """
        async with self.session() as session:
            fault = await self._learn(session)
        # The server may be busy, or down for a moment: the first query will show.
        if fault is not None and fault.kind not in ("throttled", "lost"):
            raise TeacherError(fault.message)

    async def _learn(self, session: aiohttp.ClientSession) -> Fault | None:
        """Let the wire learn, once, how the server describes the model; returns why it could not."""
        if self._looked or self._wire.about is None:
            return None
        raw = await self._send(session, "GET", self._wire.about, None, {})
        reply = self._json(raw) if isinstance(raw, RawReply) else raw
        if isinstance(raw, RawReply) and raw.status in _NO_METADATA and isinstance(reply, Fault):
            if (lacking := self._wire.lacks()) is None:
                self._looked = True  # the first query will show whether the address is right, and is not charged if not
                return None
            return replace(
                reply, kind="refused", message=f"{reply.message}; if the server does not describe models, set {lacking}"
            )
        if isinstance(reply, Fault):
            return reply
        try:
            self._wire.learn(reply)
        except TeacherError as error:
            return self.fault("refused", str(error))
        self._looked = True
        return None

    def check(self) -> None:
        """Run `look` to its end."""
        _run(self.look())

    def answer(self, images: Tensor) -> Answers:
        """Send one request and wait for its answers; see `kdray.teachers.base.Teacher`.

        Raises:
            TeacherError: no answer came.
        """

        async def once() -> Answers | Fault:
            async with self.session() as session:
                return await self.ask(session, images)

        result = _run(once())
        if isinstance(result, Fault):
            raise TeacherError(result.message)
        return result

    async def _send(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: str,
        body: bytes | None,
        headers: dict[str, str],
    ) -> RawReply | Fault:
        """A server's reply of any status, or why there is none. `url` may hold ${NAME} for what is secret."""
        return await self._fetch(session, method, self._secrets.fill(url, for_url=True), url, body, headers)

    async def _fetch(
        self,
        session: aiohttp.ClientSession,
        method: str,
        address: str,
        shown: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> RawReply | Fault:
        """As `_send`, for an address without variables, which messages show as `shown`."""
        timeout = session.timeout if timeout_s is None else aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with session.request(
                method, address, data=body, headers=headers, allow_redirects=False, timeout=timeout
            ) as response:
                text = await response.read()
                return RawReply(status=response.status, headers=response.headers, text=text, url=shown)
        except Exception as error:  # `_accident` raises again what is no fault of the network
            return self._accident(error, shown)

    def _json(self, raw: RawReply) -> Any:
        """The JSON of a reply, or the fault that the reply stands for."""
        if not 200 <= raw.status < 300:
            return self._status(raw)
        try:
            return raw.json()
        except (ValueError, RecursionError):
            said = self._cut(raw.text.decode(errors="replace"))
            return self.fault("malformed", f"{raw.url} replied {raw.kind}, not JSON: {said!r}; check teacher.url")

    async def _later(self, session: aiohttp.ClientSession, first: RawReply, began: float) -> RawReply | Fault:
        """The result of a request that was answered with 202, once it is there. The request itself is not sent again.

        The session's headers hold keys: only the host of `teacher.url` is asked.
        """
        base = self._secrets.fill(self._wire.url, for_url=True)
        poll, reply = self._section.poll, first
        if (address := result_address(first, base, poll.url)) is None:
            return first  # some servers say 202 and mean 200
        asked = ""
        while True:
            if not same_host(address, base):
                message = f"{first.url} accepted the request, but its result is at another host, which gets no keys: "
                return self.fault("failed", message + self._cut(bare(address)))
            left = self._section.timeout_s - (time.monotonic() - began)
            unsaid = 0.0 if 300 <= reply.status < 400 and address != asked else _POLL_S
            wait = max(_LEAST_POLL_S, unsaid if reply.retry_after is None else reply.retry_after)
            if wait >= left:
                return self.fault(
                    "lost", f"no result from {first.url} within {self._section.timeout_s:g} s (teacher.timeout_s)"
                )
            await asyncio.sleep(wait)
            asked, shown = address, self._cut(bare(address))
            found = await self._fetch(session, "GET", address, shown, timeout_s=left - wait)
            if isinstance(found, Fault):
                if found.final:
                    return replace(found, kind="failed")
                reply = replace(first, headers={})  # asking for a result again costs nothing
            elif found.status == 202 or 300 <= found.status < 400 or found.status in _THROTTLED or found.status >= 500:
                reply = found
                address = result_address(found, address, None) or address
            elif found.status >= 400:
                return replace(self._status(found), kind="failed", replied=True)
            elif is_pending(found, poll):
                reply = found
            else:
                return found

    def _accident(self, error: Exception, url: str) -> Fault:
        """The fault that an exception of aiohttp stands for: had the request been sent?"""
        # A ClientResponseError shows the whole address, with the key in it.
        text = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
        reason = self._cut(text or type(error).__name__)
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return self.fault("refused", f"{url}: the server's certificate is not trusted ({reason}); see teacher.ca")
        if isinstance(error, aiohttp.ClientSSLError):
            return self.fault("unsent", f"{url}: no TLS connection ({reason}): is it http:// there, not https://?")
        if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError | UnicodeError):  # a host like "a..b"
            return self.fault("refused", f"teacher.url: {url} is not an address")
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return self.fault(
                "unsent", f"no server answers at {url} ({reason}): is the server up, is teacher.url right?"
            )
        if isinstance(error, asyncio.TimeoutError):
            return self.fault("lost", f"no reply from {url} within {self._section.timeout_s:g} s (teacher.timeout_s)")
        if isinstance(error, aiohttp.ClientError | OSError):
            return self.fault("lost", f"the connection to {url} broke off ({reason})")
        raise error

    def _status(self, raw: RawReply) -> Fault:
        """The fault that a status other than success stands for."""
        status, url = raw.status, raw.url
        said = self._cut(raw.said)
        said = f"{status}: {said}" if said else f"{status}"
        wait: float | None = None
        kind: FaultKind = "refused"
        words = f"{url} refuses the request ({said})"
        if status in _THROTTLED:
            wait = raw.retry_after
            kind, words = "throttled", f"{url} says {said}"
        elif status in _UNREAD:
            kind, words = "unsent", f"{url} says {said}"
        elif status >= 500:
            kind, words = "lost", f"{url} failed ({said})"
        elif status in _DECLINED:
            kind, words = "declined", f"{url} does not take the request ({said})"
        elif status in (401, 403):
            words = f"{url} refuses the key ({said}); check teacher.headers and the key"
        elif status == 404:
            words = f"{url} does not exist there ({said}); check teacher.url"
            words += " and teacher.model" if self._section.model is not None else ""
        elif status == 413:
            kind, words = "oversized", f"{url}: the request is too large ({said})"
        elif status < 400:
            target = self._cut(bare(raw.headers.get("Location", "elsewhere")))
            words = f"{url} answers {status}, not 200 (it points to {target}); set teacher.url to where the model is"
        return self.fault(kind, words, wait)

    def fault(self, kind: FaultKind, message: str, wait_s: float | None = None) -> Fault:
        """A fault whose message holds no secret."""
        return Fault(kind=kind, message=self._clean(message), wait_s=wait_s)

    def _clean(self, text: str) -> str:
        """Words of a server or a library as one line without secrets and control codes, to be shown and stored."""
        known = [self._section.url, self._wire.url, self._wire.about or ""]
        line = " ".join(bare_in(self._secrets.redact(text), known).split())
        return "".join(character if character.isprintable() else "\ufffd" for character in line)

    def _cut(self, text: str) -> str:
        """The beginning of such words. They are cleaned before they are cut: a piece of a secret is not recognised."""
        clean = self._clean(self._secrets.redact(text)[: 50 * _MOST_CHARACTERS])
        return clean if len(clean) <= _MOST_CHARACTERS else f"{clean[:_MOST_CHARACTERS]}..."


def _after(key: str, replies: int) -> str:
    """The Idempotency-Key of a request to whose earlier tries so many replies without answers have come. A try after
    none has the key of the one before it, and a server that knows the header bills both once. After a reply it is new:
    such a server would give that reply again."""
    return hashlib.blake2b(f"{key}:{replies}".encode(), digest_size=16).hexdigest() if replies else key


def _run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end, also where an event loop is running already, as in a notebook."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, coroutine).result()
