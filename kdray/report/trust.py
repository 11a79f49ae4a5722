"""Can I trust the numbers? What each of a run's figures rests on, in sentences."""

from collections.abc import Sequence

from kdray.observers.base import RoundMetrics
from kdray.report.failures import Failures
from kdray.runs.confirmed import confirmed_note
from kdray.runs.result import Result
from kdray.select.balance import LOW, remedies
from kdray.utils.intervals import clopper_pearson

_TELLING = 30  # mistakes under which a student's accuracy is known roughly at best


def reasons(result: Result, tested: Failures | None) -> list[tuple[str, str]]:
    """What was looked at, and what is found of it."""
    return [*_measured(result, tested), *_calibrated(tested), *_search(result.history), *_balance(result)]


def accuracy_interval(result: Result, tested: Failures | None) -> tuple[float, float] | None:
    """The 95 % interval of the student's accuracy, or None where there is none."""
    share = result.history[-1].student_accuracy
    if share is None or tested is None:
        return None
    return clopper_pearson(round(share * tested.compared), tested.compared)


def _measured(result: Result, tested: Failures | None) -> list[tuple[str, str]]:
    rows = []
    if tested is not None:
        text = (
            f"{tested.compared:,} of {tested.count:,} test images, judged by {tested.against}. They were never trained "
            "on, and nothing of the run was chosen by them."
        )
        if tested.wrong < _TELLING:
            text += (
                f" The student gets {tested.wrong:,} of them wrong: too few to tell it from one that is a little "
                "better or worse."
            )
        rows.append(("Test images", text))
    rows.append(
        (
            "One run",
            f"These are the figures of seed {result.config.seed} alone; another seed gives another student. "
            "A sweep over seeds tells by how much they differ.",
        )
    )
    return rows


def _calibrated(tested: Failures | None) -> list[tuple[str, str]]:
    if tested is None or tested.calibration is None:
        return []
    found = tested.calibration
    before, after = 100 * found.before.error, 100 * found.after.error
    text = f"On average the student's confidence is {before:.1f} points away from the share that it gets right"
    if tested.wrong < _TELLING:
        text += f"; {tested.wrong:,} mistakes are too few to find a temperature by"
    elif after < before:
        text += (
            f", and {after:.1f} with logits divided by {found.temperature:.3g}: "
            f"kdray export RUN --temperature {found.temperature:.3g} builds that in"
        )
    else:
        text += "; no temperature makes that better"
    return [("Calibration", f"{text}.")]


def _search(history: Sequence[RoundMetrics]) -> list[tuple[str, str]]:
    """How much of what the strategy looks for the search has found."""
    found = [(m.round, recall_words(m)) for m in history if recall_words(m) != "–"]
    if not found:
        return []
    if all(words == "all" for _, words in found):
        return [("Search", "Every candidate of the pool was scored in each round that chose, so the choice is exact.")]
    told = "; ".join(f"round {number}: {words}" for number, words in (found if len(found) <= 5 else found[-5:]))
    which = "the last five, " if len(found) > 5 else ""
    return [
        (
            "Recall of the search",
            f"Share of the candidates that the strategy looks for that were found, estimated from a sample, with a "
            f"95 % interval ({which}{told}).",
        )
    ]


def _balance(result: Result) -> list[tuple[str, str]]:
    entropy = result.history[-1].relative_entropy
    if entropy is None:
        return []
    text = f"{entropy:.2f}, where 1 means that the teacher's answers are spread evenly over the classes."
    if entropy < LOW:
        text += f" Under {LOW:g} the student has seen little of some classes; {remedies(result.config.can_balance)}."
    return [("Relative entropy", text)]


def recall_words(metrics: RoundMetrics) -> str:
    """The recall of a round's search, as text."""
    search = metrics.search
    if not search:
        return "–"
    if search["keep"] is None:
        return "all" if search["passes"] >= search["exhaustive"] else "–"
    if search["recall"] is None:
        return "not estimated"
    return f"{100 * search['recall']:.1f} % ({100 * search['recall_low']:.1f} to {100 * search['recall_high']:.1f})"


def remarks(history: Sequence[RoundMetrics]) -> list[str]:
    """What rounds have to tell of RAD, of boundary pairs and of training, as sentences."""
    return [line for m in history for line in (*_robust(m), *_boundaries(m), *_training(m))]


def _robust(metrics: RoundMetrics) -> list[str]:
    """Sentences about the numbers that RAD used in a round."""
    told, search = metrics.estimate, metrics.search
    lines = []
    if told:
        on = {"validation": "validation images", "sources": "random mixes"}[told["how"]]
        lines.append(
            f"Round {metrics.round}: m estimated from {told['answered']:,} answers on {on}: {told['share']:.1%} "
            f"mistakes ({told['low']:.1%} to {told['high']:.1%})."
        )
    if "rad_m" in search:
        lines.append(
            f"Round {metrics.round}: RAD with m = {search['rad_m']:,.0f} of {search['rad_n']:,} candidates and "
            f"w = {search['rad_w']:.3g} drew from the {search['rad_support']:,} candidates of largest gain."
        )
    return lines


def _boundaries(metrics: RoundMetrics) -> list[str]:
    """A sentence about the boundary pairs of a round, if it had any."""
    return [f"Round {metrics.round}: {confirmed_note(metrics.boundaries)}."] if metrics.boundaries else []


def _training(metrics: RoundMetrics) -> list[str]:
    """Sentences about how a round's student was trained."""
    told = metrics.training
    if not told:
        return []
    length = f"Round {metrics.round}: trained for {told['steps']:,} steps on {metrics.images:,} images."
    return [length, *(f"Round {metrics.round}: {note}." for note in told["notes"])]
