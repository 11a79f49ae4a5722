"""What a student may be asked about a pool, and who finds it out."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from kdray.search.guesses import Sweep
from kdray.search.lowest import Scored
from kdray.search.method import Found, Method, SearchRequest, look_ahead, run_search
from kdray.search.whole import (
    BestRequest,
    EndsRequest,
    FeaturesRequest,
    Gains,
    GainsRequest,
    ScoresRequest,
    Values,
    find_best,
    find_gains,
    find_values,
    gain_passes,
    guess_pays,
)

Request = SearchRequest | GainsRequest | BestRequest | FeaturesRequest | ScoresRequest | EndsRequest
Reply = Found | Gains | Scored | Values
"""To each kind of request: the k lowest; gains; the best of each group; features, scores or logits."""


class Searcher(Protocol):
    """Asks a student about a pool; in this process or on Ray."""

    def search(
        self,
        pool,
        model: nn.Module,
        request: Request,
        on_progress: Callable[[int, int], None] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> Any:
        """What `request` asks for, of `pool` under `model`: a `Reply` of its kind.

        Args:
            on_progress: gets (forward passes done, forward passes expected in all).
            on_note: told what the user should know.
        """


def expected_passes(pool: Any, request: Request, method: Method) -> int:
    """Forward passes a request will take, unless a search has to look again."""
    if isinstance(request, SearchRequest):
        return look_ahead(pool, request, method).passes
    if isinstance(request, GainsRequest):
        return gain_passes(pool, guess=guess_pays(pool, request, method.search))
    if isinstance(request, BestRequest):
        return len(request.groups) * pool.group_size
    return len(pool.images) if isinstance(request, EndsRequest) else len(request)


def perform(
    pool: Any,
    request: Request,
    method: Method,
    sweep: Sweep,
    *,
    chunk: int,
    batch: int,
    on_note: Callable[[str], None] | None = None,
) -> Reply:
    """Find out what is asked.

    Args:
        sweep: does the tasks of a stage, here or elsewhere.
        chunk, batch: images a task, and a forward pass, about.
        on_note: told what the user should know.
    """
    cut = {"chunk": chunk, "batch": batch}
    if isinstance(request, SearchRequest):
        return run_search(pool, request, method, sweep, **cut, on_note=on_note)
    if isinstance(request, GainsRequest):
        return find_gains(pool, request, method.search, sweep, cut)
    if isinstance(request, BestRequest):
        return find_best(pool, request, sweep, cut)
    return find_values(request, pool, sweep, cut)
