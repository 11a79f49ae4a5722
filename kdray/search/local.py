"""Searching in this process, on one thread, as each Ray worker does: the same bits, no Ray."""

from collections.abc import Callable

from torch import nn

from kdray.memory import keep_freed_memory
from kdray.search.forward import Compile, Forward, Mixing, Precision, a_seconds_work, one_thread
from kdray.search.method import Method
from kdray.search.requests import Reply, Request, expected_passes, perform
from kdray.search.stages import Merge, ScoreGroups, Stage
from kdray.search.work import batch_on


class LocalSearcher:
    """Does every task of a search here, one after the other.

    Args:
        chunk: images a task, about; None: about a second's work.
        device: cpu or cuda.
        method: how to search.
        precision, compile, mixing: see `Forward`.
    """

    def __init__(
        self,
        chunk: int | None = None,
        device: str = "cpu",
        method: Method | None = None,
        precision: Precision = "auto",
        compile: Compile = "auto",
        mixing: Mixing = "auto",
    ) -> None:
        self._chunk, self._device, self._method = chunk, device, method or Method()
        self._options = {"precision": precision, "compile": compile, "mixing": mixing}

    def search(
        self,
        pool,
        model: nn.Module,
        request: Request,
        on_progress: Callable[[int, int], None] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> Reply:
        """See `kdray.search.Searcher`."""
        keep_freed_memory()
        forward, pool = Forward(model, self._device, **self._options), pool.to(self._device)
        expected, done = expected_passes(pool, request, self._method), 0

        def sweep(stage: Stage, merge: Merge) -> None:
            nonlocal done
            for number in range(len(stage)):
                before = merge.evaluated
                merge.add(number, stage.run(pool, forward, number, merge.bound))
                done += merge.evaluated - before
                if on_progress is not None:
                    on_progress(done, max(done, expected))

        chunk = self._chunk or a_seconds_work(model, pool.image_shape, self._device, self._options)
        with one_thread():
            return perform(
                pool, request, self._method, sweep, chunk=chunk, batch=batch_on(self._device, model), on_note=on_note
            )


def probe(
    pool,
    model: nn.Module,
    seconds: float,
    clock: Callable[[], float],
    device: str = "cpu",
    precision: Precision = "auto",
    compile: Compile = "auto",
    mixing: Mixing = "auto",
) -> float:
    """Candidates a second that one worker scores exactly, measured for about `seconds` on the pool's first groups."""
    keep_freed_memory()
    forward, pool = Forward(model, device, precision, compile, mixing), pool.to(device)
    batch = batch_on(device, model)
    stage = ScoreGroups(count=pool.num_groups, group_size=pool.group_size, k=1, chunk=4 * batch, batch=batch)
    stage.run(pool, forward, 0)  # the first pass pays for set-up
    scored, number, begin = 0, 0, clock()
    while (elapsed := clock() - begin) < seconds or not scored:
        number = (number + 1) % max(1, len(stage) - 1)  # the last may be small
        scored += stage.run(pool, forward, number).evaluated
    return scored / max(elapsed, 1e-9)
