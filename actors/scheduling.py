"""The policy that assigns numbered tasks to workers that may die. It does not use Ray.

Each worker holds up to `depth` tasks, so that it can start the next task as soon as one ends. If a worker dies, its
tasks go back to the queue. If the queue is empty, an idle worker steals a copy of a task that waits behind another on a
busy worker. The first result is used. Tasks are pure, so both copies give the same result.

A thousand workers end a thousand tasks a second, so what is done for each task does not look at all workers.
"""

from collections import Counter, deque
from collections.abc import Sequence

from kdray.errors import ScoringError

# If this many workers have died while they held a task, the task itself kills them, for example by its memory.
MAX_TRIES = 8


class Assignment:
    """Which worker holds which task.

    Args:
        tasks: number of tasks, 0 to tasks - 1.
        workers: workers at the start; others may join.
        depth: most tasks that a worker holds.
    """

    def __init__(self, tasks: int, workers: Sequence[int] = (), depth: int = 2) -> None:
        # Only open tasks are stored, not all tasks: a pool of billions of candidates has millions of tasks.
        self._tasks, self._depth = tasks, depth
        self._next = self._finished = 0
        self._returned: deque[int] = deque()
        self._open: set[int] = set()
        self._held: dict[int, list[int]] = {worker: [] for worker in workers}
        self._room: dict[int, None] = dict.fromkeys(workers)  # workers that hold fewer than `depth`, in order
        self._copied: set[int] = set()  # open tasks of which a copy was stolen
        self._losses: Counter[int] = Counter()
        self.requeued = 0
        """Number of tasks assigned again because their worker died."""
        self.stolen = 0
        """Number of copies of tasks assigned to idle workers."""

    @property
    def complete(self) -> bool:
        """Whether every task is done."""
        return self._finished == self._tasks

    @property
    def workers(self) -> list[int]:
        """The workers that may get tasks."""
        return list(self._held)

    def next_tasks(self) -> list[tuple[int, int]]:
        """The (worker, task) pairs to start now: one task for each worker in turn, until all hold `depth` tasks."""
        given: list[tuple[int, int]] = []
        for level in range(self._depth):
            for worker in list(self._room):
                held = self._held[worker]
                if len(held) > level:
                    continue
                task = self._from_queue()
                if task is None:
                    return given + self._steal()
                held.append(task)
                given.append((worker, task))
                if len(held) == self._depth:
                    del self._room[worker]
        return given

    def done(self, worker: int, task: int) -> bool:
        """Record that `worker` finished `task`. Returns whether it is the first worker to finish this task."""
        if task in self._held.get(worker, ()):
            self._held[worker].remove(task)
            self._room[worker] = None
        first = task in self._open
        self._open.discard(task)
        self._copied.discard(task)
        self._finished += first
        return first

    def lost(self, worker: int) -> None:
        """Record that `worker` died. Its tasks go back to the front of the queue.

        Raises:
            ScoringError: a task has been lost `MAX_TRIES` times.
        """
        self._room.pop(worker, None)
        for task in reversed(self._held.pop(worker, [])):
            self._copied.discard(task)
            if task not in self._open or any(task in held for held in self._held.values()):
                continue
            self._losses[task] += 1
            if self._losses[task] >= MAX_TRIES:
                raise ScoringError(
                    f"{MAX_TRIES} scoring workers died while they held task {task}; they may run out of memory: lower "
                    "resources.scoring_workers or resources.chunk, then 'kdray resume'"
                )
            self.requeued += 1
            self._returned.appendleft(task)

    def joined(self, worker: int) -> None:
        """Add a worker, which may be new or restarted."""
        if worker not in self._held:
            self._held[worker] = []
            self._room[worker] = None

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

    def _steal(self) -> list[tuple[int, int]]:
        """For each idle worker, a copy of the last task of a worker that holds at least two. It waits there, and the
        idle worker can run it at once. A task has one copy at most."""
        idle = [worker for worker in self._room if not self._held[worker]]
        if not idle:
            return []
        waiting = (held[-1] for held in self._held.values() if len(held) > 1)
        spare = (task for task in waiting if task in self._open and task not in self._copied)
        given = list(zip(idle, spare, strict=False))
        for worker, task in given:
            self._held[worker].append(task)
            self._copied.add(task)
        self.stolen += len(given)
        return given
