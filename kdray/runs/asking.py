"""What a run asks the teacher about: purchases of its rounds, of its estimate and of its test images."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from torch import Tensor

from kdray.errors import BudgetExceeded
from kdray.runs.context import RunContext
from kdray.runs.policy import Bought
from kdray.runs.purchase import buy


class Asking:
    """Buys answers for one run, and tells its observers."""

    def __init__(self, run: RunContext) -> None:
        self._run = run

    def buy(
        self,
        images: Tensor,
        number: int,
        purpose: str,
        name: Callable[[int], str],
        again: int = 0,
        *,
        at_random: bool = False,
    ) -> Bought:
        """Answers to `images`, see `kdray.runs.purchase.buy`.

        Args:
            number: of the round.
            name: names an image by its position, for messages.
            again: so many of the last images have an answer, and are paid for again.
            at_random: see `PurchasePolicy`.

        Raises:
            BudgetExceeded: the cap of all who share the ledger leaves too little, and the run wants whole rounds.
        """
        run = self._run
        bought = buy(
            images,
            teachers=run.teachers,
            ledger=run.ledger,
            batch_size=run.inputs.config.teacher.batch_size,
            purpose=purpose,
            round=number,
            owner=run.owner,
            policy=replace(run.policy, again=again, at_random=at_random),
            on_progress=lambda done, total: self._tell(done, total, purpose),
            on_note=run.observer.note,
            name=name,
        )
        if run.whole_rounds and bought.short and purpose != "evaluation" and self._own_queries_left(purpose):
            raise BudgetExceeded(
                f"the budget of all runs that share the ledger is spent: {bought.short:,} of {len(images):,} images of "
                f"round {number} were not asked; raise it to go on"
            )
        return bought

    def repeated(
        self, images: Tensor, bought: Bought, earlier: Iterable[Tensor], *, number: int = 0, again: int = 0
    ) -> int:
        """Of the answers that cost nothing, those that would cost the run nothing if it were alone: their images appear
        twice, or it had their answers before.

        Args:
            images: that were asked about.
            bought: what came of it.
            number, again: see `buy`.
            earlier: images that the run had answers to before; looked at only where others have bought some.
        """
        if not bought.reused:
            return 0
        keys = replace(self._run.policy, again=again).keys(images, number)
        keys = [keys[position] for position in bought.positions.tolist()]
        others = self._run.ledger.bought_by_others(self._run.teachers.teacher.identity, keys, self._run.owner)
        if others:
            for known in earlier:
                others.difference_update(self._run.policy.input.hashes(known))
        return bought.reused - len(others)

    def lost(self) -> int:
        """Training queries that were charged and have no valid answer."""
        ledger, owner = self._run.ledger, self._run.owner
        return int(ledger.uncertain("training", owner) + ledger.rejected("training", owner))

    def _own_queries_left(self, purpose: str) -> bool:
        """Whether the run could ask for more, were it not for the cap of all who share the ledger."""
        inputs = self._run.inputs
        estimate = inputs.estimation.queries if inputs.estimation else 0
        cap = estimate if purpose == "estimate" else inputs.config.budget.queries - estimate
        return bool(self._run.ledger.spent(purpose, self._run.owner) < cap)

    def _tell(self, done: int, total: int, purpose: str) -> None:
        spent = self._run.ledger.spent("training", self._run.owner) if purpose == "training" else None
        self._run.observer.progress(done, total, spent=spent)


def namer(words: str, ids: np.ndarray | None) -> Callable[[int], str]:
    """Names an image by its place in what was asked: its id where there are ids, else its position."""
    return lambda position: words.format(position if ids is None else ids[position])
