"""Search in this process, without Ray. It uses one thread, as each Ray worker does, so results have the same bits."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from torch import nn

from kdray.pools.base import Pool, placed
from kdray.search.cost import batch_on
from kdray.search.forward import Forward, ForwardOptions, a_seconds_work, one_thread
from kdray.search.requests import R, Request, SearchContext
from kdray.search.stages import Cut, Merge, ScoreGroups, Stage
from kdray.sections.search import SearchSettings
from kdray.utils.memory import keep_freed_memory


class LocalSearcher:
    """Runs all tasks of a search in this process, one after the other.

    Args:
        chunk: approximate number of images in a task; None means about one second's work.
        device: cpu or cuda.
        settings: how pools are searched.
        options: how the student is run.
    """

    def __init__(
        self,
        chunk: int | None = None,
        device: str = "cpu",
        settings: SearchSettings | None = None,
        options: ForwardOptions | None = None,
    ) -> None:
        self._chunk, self._device = chunk, device
        self._settings, self._options = settings or SearchSettings(), options or ForwardOptions()

    def search(
        self,
        pool: Pool,
        model: nn.Module,
        request: Request[R],
        *,
        seed: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> R:
        """See `kdray.search.requests.Searcher`."""
        keep_freed_memory()
        forward, pool = Forward(model, self._device, self._options), placed(pool, self._device)
        expected, done = request.passes(pool, self._settings), 0

        def run_stage(stage: Stage, merge: Merge) -> None:
            nonlocal done
            for number in range(len(stage)):
                before = merge.evaluated
                merge.add(number, stage.run(pool, forward, number, merge.bound))
                done += merge.evaluated - before
                if on_progress is not None:
                    on_progress(done, max(done, expected))

        chunk = self._chunk or a_seconds_work(model, pool.image_shape, self._device, self._options)
        context = SearchContext(
            run_stage=run_stage,
            cut=Cut(chunk=chunk, batch=batch_on(self._device, model)),
            settings=self._settings,
            seed=seed,
            note=on_note or (lambda text: None),
        )
        with one_thread():
            return request.perform(pool, context)


def probe(
    pool: Pool,
    model: nn.Module,
    seconds: float,
    clock: Callable[[], float],
    device: str = "cpu",
    options: ForwardOptions | None = None,
    enough: float = inf,
) -> float:
    """Candidates that one worker scores exactly per second, measured for about `seconds` on the pool's first groups, or
    until `enough` are scored. Where one batch takes longer than `seconds`, it alone is measured."""
    keep_freed_memory()
    forward, pool = Forward(model, device, options or ForwardOptions()), placed(pool, device)
    batch = batch_on(device, model)

    def tasks_of(batches: int) -> ScoreGroups:
        cut = Cut(chunk=batches * batch, batch=batch)
        return ScoreGroups(cut=cut, count=pool.num_groups, group_size=pool.group_size, k=1)

    stage = tasks_of(1)
    stage.run(pool, forward, 0)  # the first task includes set-up
    begin = clock()
    scored = stage.run(pool, forward, min(1, len(stage) - 1)).evaluated
    if (elapsed := clock() - begin) >= seconds:
        return scored / elapsed
    stage = tasks_of(4)
    scored, number, begin = 0, 0, clock()
    while ((elapsed := clock() - begin) < seconds and scored < enough) or not scored:
        number = (number + 1) % max(1, len(stage) - 1)  # skip the last task, which may be small
        scored += stage.run(pool, forward, number).evaluated
    return scored / max(elapsed, 1e-9)
