"""A run from its config to its result, in a run directory that can be killed and resumed at any moment."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from kdray.artefacts import Labelled, RunDirectory, write_image_set
from kdray.config import Config
from kdray.config_file import differences, dump_config, load_config
from kdray.engine import Engine, engine, options, terms
from kdray.errors import BudgetExceeded, LedgerError, RunDirectoryError
from kdray.events import EventWriter
from kdray.files import read_json, write_bytes
from kdray.inputs import Given, Inputs, read_inputs, resolve
from kdray.ledger.store import Ledger
from kdray.observers import Observer, Observers, RoundMetrics
from kdray.paths import runs_folder
from kdray.rounds import Parts, Rounds
from kdray.students.export import load_student, read_card
from kdray.students.models import ImageClassifier
from kdray.teachers.answers import AnswerFormat


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


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished run.

    Attributes:
        directory: where it is.
        student: the newest student, in eval mode: uint8 [B, C, H, W] in, logits [B, K] out.
        history: metrics of each round.
        receipt: what was spent.
        num_classes: K.
        config: as resolved.
    """

    directory: Path
    student: ImageClassifier
    history: list[RoundMetrics]
    receipt: Receipt
    num_classes: int
    config: Config

    @property
    def labelled(self) -> list[Labelled]:
        """The labelled set, a part for each round, read from the run directory; the part of an estimate comes before
        its round's."""
        run, parts = RunDirectory(self.directory), []
        for metrics in self.history:
            kinds = (True, False) if run.has_sample(metrics.round) else (False,)
            parts += [run.read_labelled(metrics.round, self.num_classes, sample=kind) for kind in kinds]
        return parts


def choose_directory(config: Config, name: str) -> RunDirectory:
    """The first of runs/NAME, runs/NAME-2, ... that is free or holds this very config."""
    for number in range(1, 10_000):
        run = RunDirectory(runs_folder() / (name if number == 1 else f"{name}-{number}"))
        if not run.is_run():
            if not run.path.exists() or not any(run.path.iterdir()):
                return run
            continue
        recorded = load_config(run.config)
        if not _differences(recorded, resolve(config, recorded)):
            return run
    raise RunDirectoryError(f"{runs_folder()} is full of runs named {name}; give --out")


def _differences(recorded: Config, config: Config) -> list[str]:
    """Differences that make another experiment. Workers and chunks do not: they change nothing that is chosen."""
    free = (
        "resources.scoring",
        "resources.teacher_workers",
        "resources.chunk",
        "resources.trainer.where",
        "resources.trainer.gpus",
        # Where and how fast a teacher is asked; whether it is the same one, the ledger knows.
        "teacher.url",
        "teacher.headers",
        "teacher.ca",
        "teacher.timeout_s",
        "teacher.limits",
        "teacher.retry",
        "ledger.queries",
    )
    return [line for line in differences(recorded, config) if not line.startswith(free)]


def run(
    config: Config,
    directory: RunDirectory,
    *,
    local: bool = False,
    observer: Observer | None = None,
    given: Given | None = None,
) -> Result:
    """Start a run, or go on with the one in `directory`, and see it to its end.

    Args:
        config: as the user gave it; the run directory gets it resolved.
        local: everything in this process, no Ray.
        observer: told what happens; closed at the end.
        given: parts that come from Python in place of files.

    Raises:
        KdrayError: before anything is paid or written, when the config or what it names is wrong; later, when the
            teacher fails. What was bought stays, and running again goes on.
    """
    observer = observer or Observer()
    with ExitStack() as stack:
        stack.callback(observer.close)
        recorded = load_config(directory.config) if directory.is_run() else None
        config = resolve(config, recorded)
        _check_directory(directory, recorded, config)
        if recorded is not None and directory.next_phase(config.select.rounds) is None:
            observer.note("the run is complete; nothing is asked again")
            return read_result(directory)
        if recorded is not None:
            directory.lock()
            stack.callback(directory.unlock)
        inputs = read_inputs(config, observer=observer, given=given)
        # A cluster that cannot be joined is found out before anything is written.
        parts = stack.enter_context(engine(inputs, local=local, observer=observer))
        if recorded is None:
            directory.lock()
            stack.callback(directory.unlock)
            if directory.config.exists():  # between the look above and the lock
                raise RunDirectoryError(
                    f"another process has just started a run in {directory.path}; choose another --out"
                )
            for name in ("images", "labelled", "validation", "test"):
                if (data := given and getattr(given, name)) is not None:
                    write_image_set(Path(getattr(config, name).path), data)
            write_bytes(directory.config, dump_config(config).encode())
        _work(inputs, parts, directory, observer)
        return read_result(directory)


def resume(
    directory: RunDirectory, *, local: bool = False, observer: Observer | None = None, given: Given | None = None
) -> Result:
    """Go on with the run in `directory`.

    Raises:
        RunDirectoryError: there is none.
        KdrayError: see `run`.
    """
    if not directory.is_run():
        raise RunDirectoryError(f"{directory.path} holds no run; start one with 'kdray run CONFIG'")
    return run(load_config(directory.config), directory, local=local, observer=observer, given=given)


def read_result(directory: RunDirectory) -> Result:
    """What a run directory holds now, finished or not, from its files alone.

    Raises:
        RunDirectoryError: it holds no finished round.
    """
    if not directory.is_run():
        raise RunDirectoryError(f"{directory.path} holds no run")
    config = load_config(directory.config)
    paths = [directory.artefact(number, "evaluate") for number in range(config.select.rounds + 1)]
    history = [RoundMetrics(**read_json(path)) for path in paths if path.exists()]
    if not history:
        raise RunDirectoryError(
            f"{directory.path} has not finished a round yet; go on with: kdray resume {directory.path}"
        )
    card = read_card(directory.student)
    owner, ledger = directory.owner(), Ledger(ledger_path(config, directory))
    try:
        queries, evaluation = ledger.spent("training", owner), ledger.spent("evaluation", owner)
        estimate = ledger.spent("estimate", owner)
        price = config.budget.price_per_query
        receipt = Receipt(
            teachers=ledger.teachers(owner),
            queries=queries,
            uncertain=ledger.uncertain("training", owner) + ledger.uncertain("estimate", owner),
            rejected=ledger.rejected("training", owner) + ledger.rejected("estimate", owner),
            reused=sum(metrics.reused for metrics in history),
            evaluation_queries=evaluation,
            estimate_queries=estimate,
            budget=config.budget.queries,
            cost=None if price is None else queries * price,
            evaluation_cost=None if price is None else evaluation * price,
            estimate_cost=None if price is None else estimate * price,
            currency=config.budget.currency,
        )
    finally:
        ledger.close()
    return Result(
        directory=directory.path,
        student=load_student(directory.student),
        history=history,
        receipt=receipt,
        num_classes=card.num_classes,
        config=config,
    )


def _check_directory(directory: RunDirectory, recorded: Config | None, config: Config) -> None:
    if recorded is not None and (changed := _differences(recorded, config)):
        raise RunDirectoryError(
            f"{directory.path} holds a run of another config ({'; '.join(changed[:3])}); "
            f"choose another --out, or go on with the old one: kdray resume {directory.path}"
        )
    if recorded is None and directory.path.exists():
        if not directory.path.is_dir():
            raise RunDirectoryError(f"{directory.path} is a file; choose another --out")
        # What a run that died before its config was written may leave: it is used again.
        ours = {".lock", "id", "inputs", *(directory.ledger.name + end for end in ("", "-wal", "-shm"))}
        if any(entry.name not in ours for entry in directory.path.iterdir()):
            raise RunDirectoryError(f"{directory.path} is not empty and holds no run; choose another --out")


def _work(inputs: Inputs, parts: Engine, directory: RunDirectory, observer: Observer) -> None:
    """Every phase that is missing, under the directory's lock."""
    config = inputs.config
    evaluation = _evaluation_queries(inputs)
    owner, path = directory.owner(), ledger_path(config, directory)
    ledger = parts.open_ledger(path, config.ledger.queries)
    try:
        _check_teacher(ledger, owner, inputs.teacher.identity, path, observer)
        estimate = inputs.estimation.queries if inputs.estimation else 0
        caps = {"training": config.budget.queries - estimate, "evaluation": evaluation}
        ledger.open_account(owner, caps | ({"estimate": estimate} if estimate else {}))
        # A run directory is worked in by one process, and the lock is ours: what this owner has reserved was left by
        # a dead one.
        uncertain, _ = ledger.recover(owner)
        if uncertain:
            observer.note(
                f"{uncertain:,} queries were on their way when kdray died: they count as charged, their answers are "
                "lost; they are asked again as far as the budget goes"
            )
        with EventWriter(directory.events) as events:
            heard = Observers([observer, events])
            rounds = Rounds(
                directory,
                Parts(
                    images=inputs.images,
                    labelled=inputs.labelled,
                    test=inputs.test,
                    pool=inputs.pool,
                    searcher=parts.searcher,
                    teachers=parts.teachers,
                    trainer=parts.trainer,
                    ledger=ledger,
                    observer=heard,
                    schedule=inputs.schedule,
                    strategy=config.select.strategy,
                    options=options(config),
                    estimation=inputs.estimation,
                    seed=config.seed,
                    classes=inputs.classes,
                    batch_size=config.teacher.batch_size,
                    epochs=config.student.epochs,
                    evaluation_queries=evaluation,
                    top=AnswerFormat(config.teacher.answers).top,
                    owner=owner,
                    terms=terms(config, inputs.teacher.metered),
                    threads=config.resources.trainer.threads,
                ),
            )
            observer.begin(
                rounds=rounds.last,
                budget=config.budget.queries,
                spent=ledger.spent("training", owner) + ledger.spent("estimate", owner),
                title=str(directory.path),
            )
            for metrics in rounds.history():
                events.round_done(metrics)
            try:
                while rounds.step():
                    pass
            except BudgetExceeded as error:  # only lost answers lead here: the schedule itself fits the budget
                if not rounds.history():
                    raise
                observer.note(str(error))
    finally:
        ledger.close()


def ledger_path(config: Config, directory: RunDirectory) -> Path:
    """Where a run's ledger is: its own, or one it shares."""
    return Path(config.ledger.path) if config.ledger.path else directory.ledger


def _check_teacher(ledger, owner: str, identity: str, path: Path, observer: Observer) -> None:
    """One run has one teacher; a ledger may have several, and their answers are kept apart.

    Raises:
        LedgerError: this run has bought from another teacher.
    """
    mine = [name for name in ledger.teachers(owner) if name != identity]
    if mine:
        raise LedgerError(
            f"{path}: this run has bought its answers from {mine[0]}, and the teacher is now {identity}; answers of "
            "two teachers do not mix: bring the old one back, or start a new run"
        )
    others = [name for name in ledger.teachers() if name != identity]
    if others and identity not in ledger.teachers():
        observer.note(f"{path} holds answers of other teachers ({', '.join(others[:3])}); none of them is used")


def _evaluation_queries(inputs: Inputs) -> int:
    """Teacher queries allowed on test images: what the config says, or all where nobody can bill for them."""
    if inputs.test is None:
        return 0
    allowed = inputs.config.budget.evaluation
    if allowed == "auto":
        return 0 if inputs.teacher.metered else len(inputs.test)
    return min(allowed, len(inputs.test))
