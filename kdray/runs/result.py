"""What a run directory holds: the student, the figures of each round, what was spent."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

from kdray.config.load import load_config
from kdray.config.root import Config
from kdray.errors import RunDirectoryError
from kdray.ledger.store import Ledger
from kdray.models.checkpoint import load_student, read_own_card
from kdray.models.classifier import ImageClassifier
from kdray.observers import RoundMetrics
from kdray.runs.directory import RunDirectory
from kdray.runs.tables import Labelled
from kdray.utils.files import read_json, shown


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What was spent.

    Attributes:
        teachers: identity of each teacher that was asked.
        queries: training queries charged, lost ones included.
        uncertain: of those, sent and never answered.
        rejected: of those, answered with something that is no answer.
        reused: answers that cost nothing.
        evaluation_queries: queries on test images, counted apart.
        estimate_queries: queries for the estimate of RAD's m, counted apart; the budget pays them.
        budget: the cap on training queries and those for an estimate together.
        cost: price of the training queries, or None where no price is given.
        evaluation_cost, estimate_cost: price of the others, likewise.
        currency: of both.
    """

    teachers: list[str]
    queries: int
    uncertain: int
    rejected: int
    reused: int
    evaluation_queries: int
    estimate_queries: int
    budget: int
    cost: float | None
    evaluation_cost: float | None
    estimate_cost: float | None
    currency: str

    @property
    def paid(self) -> int:
        """Queries charged to the budget: for training, and for the estimate."""
        return self.queries + self.estimate_queries

    @property
    def paid_cost(self) -> float | None:
        """Their price, or None where no price is given."""
        return None if self.cost is None else self.cost + (self.estimate_cost or 0.0)


@dataclass(frozen=True, kw_only=True, repr=False)
class Result:
    """A finished run.

    Attributes:
        directory: where it is.
        student: the newest student, in eval mode: uint8 [B, C, H, W] in, logits [B, K] out.
        history: metrics of each round.
        receipt: what was spent.
        num_classes: K.
        classes: K names, or None.
        config: as resolved.
    """

    directory: Path
    student: ImageClassifier
    history: list[RoundMetrics]
    receipt: Receipt
    num_classes: int
    classes: tuple[str, ...] | None
    config: Config

    def __repr__(self) -> str:
        last = self.history[-1]
        measured = f", {last.measured()}" if last.measured() else ""
        return (
            f"<kdray.Result of {self.config.student.model}{measured}, {self.receipt.paid:,} of {self.receipt.budget:,} "
            f"queries, in {self.directory}>"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: a row for each round, and what was spent."""
        heads = ("round", "images", "queries", "student", "teacher", "success", "agreement")
        rows = [
            (
                str(m.round),
                f"{m.images:,}",
                f"{m.paid:,}",
                *(_share(share) for share in (m.student_accuracy, m.teacher_accuracy, m.success_rate, m.agreement)),
            )
            for m in self.history
        ]
        head = "".join(f"<th>{name}</th>" for name in heads)
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        cost = "" if self.receipt.paid_cost is None else f" for {self.receipt.paid_cost:,.2f} {self.receipt.currency}"
        spent = f"{self.receipt.paid:,} of {self.receipt.budget:,} queries{cost}"
        title = escape(f"{self.config.student.model}: {spent}, in {shown(self.directory)}")
        return f"<table><caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    @property
    def labelled(self) -> list[Labelled]:
        """The labelled set, a part for each round, read from the run directory; the part of an estimate comes before
        its round's."""
        run, parts = RunDirectory(self.directory), []
        for metrics in self.history:
            kinds = (True, False) if run.has_sample(metrics.round) else (False,)
            parts += [run.read_labelled(metrics.round, self.num_classes, sample=kind) for kind in kinds]
        return parts


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"


def read_result(directory: RunDirectory) -> Result:
    """What a run directory holds now, finished or not, from its files alone.

    Raises:
        RunDirectoryError: it holds no finished round.
    """
    if not directory.is_run():
        raise RunDirectoryError(f"{directory.path} holds no run")
    config = load_config(directory.config)
    paths = [directory.artefact(number, "evaluate") for number in directory.finished_rounds()]
    history = [RoundMetrics(**read_json(path)) for path in paths]
    if not history:
        raise RunDirectoryError(
            f"{directory.path} has not finished a round yet; go on with: kdray resume {directory.path}"
        )
    card = read_own_card(directory.student)
    owner, ledger = directory.owner(), Ledger(directory.ledger_of(config.ledger), read_only=True)
    try:
        receipt = _receipt(config, owner, ledger, sum(metrics.reused for metrics in history))
    finally:
        ledger.close()
    return Result(
        directory=directory.path,
        student=load_student(directory.student),
        history=history,
        receipt=receipt,
        num_classes=card.num_classes,
        classes=card.classes,
        config=config,
    )


def _receipt(config: Config, owner: str, ledger: Ledger, reused: int) -> Receipt:
    price = config.budget.price_per_query

    def cost(queries: int) -> float | None:
        return None if price is None else queries * price

    queries, evaluation, estimate = (ledger.spent(purpose, owner) for purpose in ("training", "evaluation", "estimate"))
    return Receipt(
        teachers=ledger.teachers(owner),
        queries=queries,
        uncertain=ledger.uncertain("training", owner) + ledger.uncertain("estimate", owner),
        rejected=ledger.rejected("training", owner) + ledger.rejected("estimate", owner),
        reused=reused,
        evaluation_queries=evaluation,
        estimate_queries=estimate,
        budget=config.budget.queries,
        cost=cost(queries),
        evaluation_cost=cost(evaluation),
        estimate_cost=cost(estimate),
        currency=config.budget.currency,
    )
