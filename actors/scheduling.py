"""Handing numbered tasks to actors that may die: the policy, without Ray.

Each worker holds up to `depth` tasks, so that the next is there when one ends. A worker's tasks go back to the queue
when it dies. When the queue is empty, an idle worker steals a copy of a task that waits behind another on a busy
worker: whoever is first wins, and tasks are pure, so it does not matter who.
"""

from collections import Counter, deque
from collections.abc import Hashable, Sequence

from kdray.errors import ScoringError

# A chunk that has taken this many workers with it is not their bad luck: it kills them (out of memory, say).
MAX_TRIES = 8


class Assignment:
    """Which worker holds which task.

    Args:
        tasks: the number of tasks, 0..tasks-1.
        workers: who is there at the start; others join.
        depth: tasks a worker holds.
    """

    def __init__(self, tasks: int, workers: Sequence[Hashable] = (), depth: int = 2) -> None:
        # Only what is under way is kept, never a list of all tasks: a pool of billions has millions of them.
        self._tasks, self._depth = tasks, depth
        self._next = self._finished = 0
        self._returned: deque[int] = deque()
        self._open: set[int] = set()
        self._held: dict[Hashable, list[int]] = {worker: [] for worker in workers}
        self._losses: Counter[int] = Counter()
        self.requeued = 0
        """Tasks given out again because their worker died."""
        self.stolen = 0
        """Copies given to idle workers."""

    @property
    def complete(self) -> bool:
        """Every task is done."""
        return self._finished == self._tasks

    @property
    def workers(self) -> list[Hashable]:
        """Who is there."""
        return list(self._held)

    def next_tasks(self) -> list[tuple[Hashable, int]]:
        """(worker, task) to start now, one task to each worker in turn until all hold `depth` or nothing is left."""
        given = []
        for level in range(self._depth):
            for worker, held in self._held.items():
                if len(held) > level:
                    continue
                task = self._from_queue()
                if task is None and not held:
                    task = self._steal(worker)
                if task is not None:
                    held.append(task)
                    given.append((worker, task))
        return given

    def done(self, worker: Hashable, task: int) -> bool:
        """`worker` finished `task`. True if it was the first to."""
        if task in self._held.get(worker, ()):
            self._held[worker].remove(task)
        first = task in self._open
        self._open.discard(task)
        self._finished += first
        return first

    def lost(self, worker: Hashable) -> None:
        """`worker` died: what it held goes back to the front of the queue.

        Raises:
            ScoringError: a task has now been lost `MAX_TRIES` times.
        """
        for task in reversed(self._held.pop(worker, [])):
            if task not in self._open or any(task in held for held in self._held.values()):
                continue
            self._losses[task] += 1
            if self._losses[task] >= MAX_TRIES:
                raise ScoringError(
                    f"{MAX_TRIES} scoring workers died over chunk {task}; they may run out of memory: lower "
                    "resources.scoring_workers or resources.chunk, then 'kdray resume'"
                )
            self.requeued += 1
            self._returned.appendleft(task)

    def joined(self, worker: Hashable) -> None:
        """A worker is there (again)."""
        self._held.setdefault(worker, [])

    def _from_queue(self) -> int | None:
        while self._returned:
            task = self._returned.popleft()
            if task in self._open:
                return task
        if self._next == self._tasks:
            return None
        self._open.add(self._next)
        self._next += 1
        return self._next - 1

    def _steal(self, thief: Hashable) -> int | None:
        """The last task of a worker that holds at least two: it waits there and would run here."""
        for worker, held in self._held.items():
            if worker != thief and len(held) > 1 and held[-1] in self._open:
                self.stolen += 1
                return held[-1]
        return None
