"""A pool in this process for a teacher that can answer several requests at once, such as a server."""

import asyncio
import queue
import threading
from typing import Any

from torch import Tensor

from kdray.teachers.base import AsyncTeacher, CountsReplies
from kdray.teachers.faults import Fault, fault_of
from kdray.teachers.pool import TeacherReply, as_reply


class AsyncTeacherPool:
    """Keeps up to `slots` requests on their way, from one thread of this process."""

    def __init__(self, teacher: AsyncTeacher, slots: int) -> None:
        self.teacher, self.slots = teacher, slots
        self._replies: queue.SimpleQueue[TeacherReply] = queue.SimpleQueue()
        self._open = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._session: Any = None

    def wait_until_ready(self) -> None:
        """It always is."""

    def send(self, key: Any, images: Tensor, replies: int = 0) -> None:
        """See `kdray.teachers.pool.TeacherPool`."""
        if replies and isinstance(self.teacher, CountsReplies):
            self.teacher.note_replies(images, replies)
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="kdray-teacher", daemon=True)
            self._thread.start()
        self._open += 1
        asyncio.run_coroutine_threadsafe(self._ask(key, images), self._loop)

    async def _ask(self, key: Any, images: Tensor) -> None:
        try:
            self._session = self._session or self.teacher.session()
        except Exception as error:  # before anything was sent
            self._replies.put(TeacherReply(key=key, fault=self._fault(fault_of(error, sent=False))))
            return
        try:
            reply = as_reply(key, await self.teacher.ask(self._session, images))
        except BaseException as error:  # whatever it is must reach the user, and not end with this thread or task
            reply = TeacherReply(key=key, fault=self._fault(fault_of(error)))
        self._replies.put(reply)

    def _fault(self, fault: Fault) -> Fault:
        """`fault` without a secret of the teacher."""
        return self.teacher.fault(fault.kind, fault.message, fault.wait_s)

    def collect(self, timeout_s: float | None) -> list[TeacherReply]:
        """See `kdray.teachers.pool.TeacherPool`."""
        found: list[TeacherReply] = []
        try:
            while len(found) < self._open:
                found.append(self._replies.get(timeout=timeout_s) if not found else self._replies.get_nowait())
        except queue.Empty:
            pass
        self._open -= len(found)
        return found

    def close(self) -> None:
        """Drop the requests that are on their way, and end the thread."""
        if self._loop is None or self._thread is None:
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
