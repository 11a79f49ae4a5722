"""A teacher behind HTTP: one request at a time as a coroutine, and a pool that keeps many on their way.

Every way a request can end is sorted by two questions: may somebody bill for it, and can asking again help? When in
doubt it was billed.
"""

import asyncio
import email.utils
import hashlib
import json
import queue
import ssl
import threading
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC
from typing import Any

import aiohttp
from torch import Tensor

from kdray.errors import TeacherError
from kdray.ledger.records import hash_images
from kdray.teachers.answers import Answers
from kdray.teachers.pool import Fault, FaultKind, Reply
from kdray.teachers.reader import MalformedReply
from kdray.teachers.secrets import Secrets
from kdray.teachers.wire import Wire

_CONNECT_S = 10.0
_IDLE_S = 3.0  # servers drop idle connections after 5 s and more; a request sent into a closing one would be lost
_TEXT = 200  # characters of a server's own words in a message
_THROTTLED = (429, 503)
_DECLINED = (400, 415, 422)
_UNREAD = (408, 425)  # the server gave up before it had the request


class HttpTeacher:
    """Asks a server.

    Args:
        wire: how requests and replies look.
        identity: names the model behind the server and the form of the answers.
        num_classes: K.
        headers: sent with every request, with ${NAME} for what is secret.
        secrets: what stands there.
        timeout_s: seconds for a request, from connecting to the last byte of the reply.
        ca: PEM file of the authority to trust, or None for the system's.
        metered: somebody may bill for requests.
    """

    def __init__(
        self,
        wire: Wire,
        *,
        identity: str,
        num_classes: int,
        headers: Mapping[str, str] | None = None,
        secrets: Secrets | None = None,
        timeout_s: float = 60.0,
        ca: str | None = None,
        metered: bool = True,
    ) -> None:
        self.identity, self.num_classes, self.metered = identity, num_classes, metered
        self._wire, self._headers, self._secrets = wire, dict(headers or {}), secrets or Secrets({})
        self._timeout_s, self._ca = timeout_s, ca
        self._looked = wire.about is None

    def session(self) -> aiohttp.ClientSession:
        """A session for `ask`, to be closed by the caller; must be made inside the event loop that uses it."""
        # Reading the authorities takes a tenth of a second, which a first request would wait with its permit in hand.
        context = ssl.create_default_context(cafile=self._ca) if self._wire.url.startswith("https") else True
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S, ssl=context),
            # Half of it at most: when connecting takes too long, it is known that nothing was sent.
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, connect=min(_CONNECT_S, self._timeout_s / 2)),
            headers={name: self._secrets.fill(text) for name, text in self._headers.items()},
        )

    async def ask(self, session: aiohttp.ClientSession, images: Tensor) -> Answers | Fault:
        """One request for uint8 images [B, C, H, W], and what came of it. Raises nothing that a server can cause.

        The first one of a teacher that has not been checked is preceded by a look at the model, which is free.
        """
        if (fault := await self._learn(session)) is not None:
            return replace(fault, kind="unsent") if fault.kind in ("lost", "malformed") else fault
        body = json.dumps(self._wire.request(images)).encode()
        # The same for every try of these images: a server that knows the header bills them once.
        key = hashlib.blake2b(b"".join([self.identity.encode(), *hash_images(images)]), digest_size=16).hexdigest()
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        reply = await self._call(session, "POST", self._wire.url, body, headers)
        if isinstance(reply, Fault):
            return reply
        try:
            answers = self._wire.answers(reply, len(images))
        except MalformedReply as reason:
            return self.fault("malformed", str(reason))
        return replace(answers, bad={row: self._clean(reason) for row, reason in answers.bad.items()})

    async def look(self) -> None:
        """Ask the server what the model is, where its protocol has that, free of charge.

        Raises:
            TeacherError: nobody there, no such model, the key is refused, or the model takes other images.
        """
        async with self.session() as session:
            fault = await self._learn(session)
        # Busy, or down for a moment: the first query will show.
        if fault is not None and fault.kind not in ("throttled", "lost"):
            raise TeacherError(fault.message)

    async def _learn(self, session: aiohttp.ClientSession) -> Fault | None:
        """Have the wire learn what the server says of the model, once; why it could not."""
        if self._looked:
            return None
        reply = await self._call(session, "GET", self._wire.about, None, {})
        if isinstance(reply, Fault):
            return reply
        try:
            self._wire.learn(reply)
        except TeacherError as error:
            return self.fault("refused", str(error))
        self._looked = True
        return None

    def check(self) -> None:
        """`look`, from ordinary code."""
        _run(self.look())

    def answer(self, images: Tensor) -> Answers:
        """One request, from ordinary code; see `kdray.teachers.answers.Teacher`.

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

    async def _call(
        self, session: aiohttp.ClientSession, method: str, url: str, body: bytes | None, headers: dict[str, str]
    ) -> Any:
        """The JSON a server replies, or why there is none."""
        try:
            async with session.request(
                method, self._secrets.fill(url, for_url=True), data=body, headers=headers, allow_redirects=False
            ) as response:
                text = await response.read()
                if not 200 <= response.status < 300:
                    return self._status(response, url, text)
        except Exception as error:  # sorted below; what is no accident of the network is raised again
            return self._accident(error, url)
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            kind = response.headers.get("Content-Type", "something").partition(";")[0]
            said = self._cut(text.decode(errors="replace"))
            return self.fault("malformed", f"{url} replied {kind}, not JSON: {said!r}; check teacher.url")

    def _accident(self, error: Exception, url: str) -> Fault:
        """What an exception says about whether the request had been sent."""
        # A ClientResponseError shows the whole address, key and all.
        text = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
        reason = self._cut(text or type(error).__name__)
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return self.fault("refused", f"{url}: the server's certificate is not trusted ({reason}); see teacher.ca")
        if isinstance(error, aiohttp.ClientSSLError):
            return self.fault("unsent", f"{url}: no TLS connection ({reason}): is it http:// there, not https://?")
        if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError | UnicodeError):  # a host like "a..b"
            return self.fault("refused", f"teacher.url: {url} is not an address")
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return self.fault("unsent", f"nobody answers at {url} ({reason}): is the server up, is teacher.url right?")
        if isinstance(error, asyncio.TimeoutError):
            return self.fault("lost", f"no reply from {url} within {self._timeout_s:g} s (teacher.timeout_s)")
        if isinstance(error, aiohttp.ClientError | OSError):
            return self.fault("lost", f"the connection to {url} broke off ({reason})")
        raise error

    def _status(self, response: aiohttp.ClientResponse, url: str, text: bytes) -> Fault:
        """What a status that is no success means."""
        status = response.status
        said = self._cut(_said(text))
        said = f"{status}: {said}" if said else f"{status}"
        wait, kind, words = None, "refused", f"{url} refuses the request ({said})"
        if status in _THROTTLED:
            wait = _retry_after(response.headers.get("Retry-After"))
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
            words = f"{url} does not exist there ({said}); check teacher.url and teacher.model"
        elif status == 413:
            words = f"{url}: the request is too large ({said}); lower teacher.batch_size"
        elif status < 400:
            target = self._cut(response.headers.get("Location", "elsewhere"))
            words = f"{url} answers {status}, not 200 (it points to {target}); set teacher.url to where the model is"
        return self.fault(kind, words, wait)

    def fault(self, kind: FaultKind, message: str, wait_s: float | None = None) -> Fault:
        """A fault whose message holds no secret."""
        return Fault(kind=kind, message=self._clean(message), wait_s=wait_s)

    def _clean(self, text: str) -> str:
        """A server's or a library's words as one line that can be shown and stored: no secrets, no control codes."""
        line = " ".join(self._secrets.redact(text).split())
        return "".join(character if character.isprintable() else "\ufffd" for character in line)

    def _cut(self, text: str) -> str:
        """The beginning of such words; cut after they were cleaned, or a piece of a secret would not be known."""
        clean = self._clean(self._secrets.redact(text)[: 50 * _TEXT])
        return clean if len(clean) <= _TEXT else f"{clean[:_TEXT]}..."


class HttpTeacherPool:
    """Keeps up to `slots` requests on their way, from one thread of this process."""

    def __init__(self, teacher: HttpTeacher, slots: int) -> None:
        self.teacher, self.slots = teacher, slots
        self._replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self._open = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._session: aiohttp.ClientSession | None = None

    def send(self, key: Any, images: Tensor) -> None:
        """See `kdray.teachers.pool.TeacherPool`."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="kdray-http", daemon=True)
            self._thread.start()
        self._open += 1
        asyncio.run_coroutine_threadsafe(self._ask(key, images), self._loop)

    async def _ask(self, key: Any, images: Tensor) -> None:
        try:
            self._session = self._session or self.teacher.session()
            result = await self.teacher.ask(self._session, images)
        except Exception as error:  # a fault in kdray itself must reach its user, not die in this thread
            result = self.teacher.fault("failed", f"{type(error).__name__}: {error}")
        self._replies.put(as_reply(key, result))

    def collect(self, timeout_s: float | None) -> list[Reply]:
        """See `kdray.teachers.pool.TeacherPool`."""
        found: list[Reply] = []
        try:
            while len(found) < self._open:
                found.append(self._replies.get(timeout=timeout_s) if not found else self._replies.get_nowait())
        except queue.Empty:
            pass
        self._open -= len(found)
        return found

    def close(self) -> None:
        """Drop what is still on its way."""
        if self._loop is None:
            return
        asyncio.run_coroutine_threadsafe(self._drop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._session = None
        self._replies, self._open = queue.SimpleQueue(), 0

    async def _drop(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()


def as_reply(key: Any, result: Answers | Fault) -> Reply:
    """What `HttpTeacher.ask` gave, as a reply."""
    return Reply(key=key, fault=result) if isinstance(result, Fault) else Reply(key=key, answers=result)


def _run(coroutine: Coroutine) -> Any:
    """Run a coroutine to its end, also where an event loop is running already (a notebook)."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, coroutine).result()


def _retry_after(text: str | None) -> float | None:
    """Seconds of a Retry-After header: a number, or a date."""
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(text)
        # Dates of HTTP are in GMT, also where they do not say so.
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _said(text: bytes) -> str:
    """What the server said with an error, where it is worth repeating: pages are not."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        plain = text.decode(errors="replace").strip()
        return "" if plain.startswith("<") else plain
    said = [body.get(key) for key in ("error", "message", "detail")] if isinstance(body, dict) else []
    said = next((words for words in said if words), "")
    return str(said.get("message", said) if isinstance(said, dict) else said)
