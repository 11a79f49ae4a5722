"""When a run ends because the teacher gives one answer to everything."""

from torch import Tensor

from kdray.errors import OneClassError
from kdray.runs.inputs import Inputs
from kdray.select.balance import alike, all_alike

_BLIND_ROUNDS = 3  # whose answers may all be the same, where the first candidates are those of a student without any


def check_answers(inputs: Inputs, number: int, answers: Tensor) -> None:
    """Refuse to go on after a round where all answers are the same and there is more to ask.

    Args:
        number: of the round.
        answers: float32 [N, K], all so far.

    Raises:
        OneClassError: they are.
    """
    if _first(inputs) <= number < _last(inputs) and all_alike(answers):
        raise OneClassError(alike(len(answers), int(answers[0].argmax()), inputs.classes))


def stands_for_all(inputs: Inputs, number: int, answers: Tensor) -> bool:
    """Whether a run ends within a round whose first answers are all the same; see `PurchasePolicy.at_random`.

    Images of the user may come in an order, and all of them may well be of one class.

    Args:
        number: of the round.
        answers: float32 [N, K], all of earlier rounds.
    """
    if number == 0:
        return inputs.config.images.at_random
    return not inputs.pool.real and number >= _first(inputs) and bool((answers == answers[:1]).all())


def _first(inputs: Inputs) -> int:
    """The first round of which equal answers say something."""
    labelled = inputs.labelled is not None and len(inputs.labelled) > 0
    blind = inputs.config.pool.untaught and not labelled and not inputs.schedule[0]
    return min(_BLIND_ROUNDS, _last(inputs) - 1) if blind else 0


def _last(inputs: Inputs) -> int:
    return len(inputs.schedule) - 1
