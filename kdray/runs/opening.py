"""Opening a run: its directory, inputs, workers and ledger, checked against each other, and the loop over them."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdray.config.load import differences, dump_config, load_config
from kdray.config.root import Config
from kdray.errors import KdrayError, LedgerError, OneClassError, RunDirectoryError
from kdray.observers import Observer, Observers
from kdray.observers.tensorboard import EventWriter
from kdray.runs.backend import Backend, check_backend, open_backend
from kdray.runs.context import RunContext
from kdray.runs.directory import RunDirectory
from kdray.runs.evaluation import queries_allowed, unlabelled_note
from kdray.runs.inputs import InMemoryInputs, Inputs, read_inputs, resolve
from kdray.runs.loop import Rounds
from kdray.runs.policy import PurchasePolicy
from kdray.runs.status import Record
from kdray.runs.tables import write_image_set
from kdray.teachers.http.secrets import Secrets
from kdray.utils.files import is_address, shown, write_bytes


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What the runs of a sweep share. They also stop before a round that the cap of them all cannot pay whole.

    Attributes:
        open_ledger: the ledger of all, whose file may be on another node.
        open_workers: the backend for the inputs of a run.
        secrets: of the teacher, read where the sweep was started; None: read them here.
    """

    open_ledger: Callable[[], Any]
    open_workers: Callable[[Inputs], AbstractContextManager[Backend]]
    secrets: Secrets | None = None


@contextmanager
def open_run(
    config: Config,
    directory: RunDirectory,
    *,
    local: bool = False,
    observer: Observer | None = None,
    in_memory: InMemoryInputs | None = None,
    shared: Shared | None = None,
) -> Iterator[Rounds]:
    """Start a run, or go on with the one in `directory`: its loop, whose steps the caller takes.

    The directory is locked and the workers stay until the end of the `with` block.

    Args:
        config, local, observer, in_memory: see `run`; the observer is not closed.
        shared: what it shares with other runs.

    Raises:
        KdrayError: see `run`.
    """
    observer = observer or Observer()
    record = Record()
    observer = Observers([record, observer])  # a signal may come while the display is told
    with ExitStack() as stack:
        recorded = load_config(directory.config) if directory.is_run() else None
        config = resolve(config, recorded)
        check_backend(config, local=local)
        check_directory(directory, recorded, config)
        directory.check_writable()
        if recorded is not None:
            directory.lock()
            stack.callback(directory.unlock)
            stack.enter_context(_kept(record, directory, shared))
        inputs = read_inputs(
            config,
            observer=observer,
            in_memory=in_memory,
            secrets=shared.secrets if shared else None,
            ledger_here=shared is None,
        )
        config = inputs.config
        # A cluster that cannot be joined is found out before anything is written.
        backend = stack.enter_context(
            shared.open_workers(inputs) if shared else open_backend(inputs, local=local, observer=observer)
        )
        if recorded is None:
            directory.lock()
            stack.callback(directory.unlock)
            if directory.config.exists():  # between the look above and the lock
                raise RunDirectoryError(
                    f"another process has just started a run in {directory.path}; choose another --out"
                )
            stack.enter_context(_kept(record, directory, shared))
            for name, data in (in_memory or InMemoryInputs()).image_sets().items():
                write_image_set(Path(getattr(config, name).path), data)
            write_bytes(directory.config, dump_config(config).encode())
        with (
            nullcontext() if shared else _saying_how_to_go_on(directory, config, from_python=in_memory is not None),
            _opened(inputs, backend, directory, observer, shared, record) as rounds,
            record.ending(),  # before workers and ledger are closed, which may take longer than 'ray job stop' waits
        ):
            yield rounds
        record.end("finished", 0)


@contextmanager
def _kept(record: Record, directory: RunDirectory, shared: Shared | None) -> Iterator[None]:
    """The record of a run in its locked directory. A sweep has a log and a state of each trial instead."""
    if shared is None:
        record.open(directory)
    with record.ending():
        yield


@contextmanager
def _saying_how_to_go_on(directory: RunDirectory, config: Config, *, from_python: bool) -> Iterator[None]:
    """Whatever stops a run that has begun, the message says how to go on with it, or with its answers."""
    try:
        yield
    except KdrayError as error:
        ledger = str(directory.ledger_of(config.ledger))
        if error.repeats:
            how = f"ledger={{'path': {ledger!r}}}" if from_python else f"ledger.path={ledger}"
            where = " in a local folder" if is_address(directory.name) else ""
            way = f"a new run{where} with {how} pays for none of it again"
            if isinstance(error, OneClassError):
                way = "to go on with this run would stop it again, and a new run on its ledger would get them once more"
        elif from_python:
            way = f"go on with: kdray.distil with the same arguments and out={str(directory.path)!r}"
        else:
            way = f"go on with: kdray resume {directory.name}"
        end = "" if str(error).endswith((".", "?", "!")) else "."
        error.args = (f"{error}{end} What was answered is kept; {way}", *error.args[1:])
        raise


def changes_of_experiment(recorded: Config, config: Config, *, strict: Iterable[str] = ()) -> list[str]:
    """Differences that make another experiment: all but those in fields that may change when a run goes on, see
    `kdray.sections.base.Section.resumable_fields`.

    Args:
        strict: of these fields, those that may not change here.
    """
    paths = [path for path in (*recorded.resumable_paths(), *config.resumable_paths()) if path not in strict]

    def may_change(line: str) -> bool:
        field = line.partition(":")[0]
        return any(field == path or field.startswith(f"{path}.") for path in paths)

    return [line for line in differences(recorded, config) if not may_change(line)]


def check_directory(directory: RunDirectory, recorded: Config | None, config: Config) -> None:
    """Refuse a directory that holds another run, or something else.

    Args:
        recorded: the config in it, None if it holds no run.
        config: resolved.

    Raises:
        RunDirectoryError: so it is.
    """
    if recorded is not None and (changed := changes_of_experiment(recorded, config)):
        raise RunDirectoryError(
            f"{directory.name} holds a run of another config ({'; '.join(changed[:3])}); "
            f"choose another --out, or go on with the old one: kdray resume {directory.name}"
        )
    if recorded is None and directory.path.exists():
        if not directory.path.is_dir():
            raise RunDirectoryError(f"{directory.path} is a file; choose another --out")
        # What a run that died before its config was written may leave: it is used again.
        ours = {".lock", "id", "inputs", *(directory.ledger.name + end for end in ("", "-wal", "-shm"))}
        ours |= {directory.status.name, directory.log.name}
        begun = re.compile(r"\..*\.\d+\.tmp")  # see `write_bytes`
        if any(entry.name not in ours and not begun.fullmatch(entry.name) for entry in directory.path.iterdir()):
            raise RunDirectoryError(f"{directory.path} is not empty and holds no run; choose another --out")


@contextmanager
def _opened(
    inputs: Inputs,
    backend: Backend,
    directory: RunDirectory,
    observer: Observer,
    shared: Shared | None,
    record: Record,
) -> Iterator[Rounds]:
    """The loop over a locked directory, with its ledger and its events open."""
    config = inputs.config
    evaluation, test = 0, inputs.test
    if test is not None:
        evaluation = queries_allowed(config.budget.evaluation, len(test), metered=inputs.teacher.metered)
        if test.labels is None:
            observer.note(unlabelled_note(len(test), evaluation))
    owner, path = directory.owner(), directory.ledger_of(config.ledger)
    if shared is None and directory.has_begun() and not path.exists():
        raise another_ledger(path)  # before a new one is made there
    ledger = shared.open_ledger() if shared else backend.open_ledger(path, config.ledger.queries)
    try:
        _check_teacher(ledger, owner, inputs.teacher.identity, path, observer)
        _check_ledger(ledger, directory, owner, path)
        # The new settings hold from now on, also for a later `kdray resume`. They are written once the ledger is found
        # to be the run's: a wrong path must not stay.
        if directory.config.read_bytes() != (text := dump_config(config).encode()):
            write_bytes(directory.config, text)
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
            heard = Observers([observer, events, *backend.observers(ledger, owner)])
            rounds = Rounds(
                directory,
                RunContext(
                    inputs=inputs,
                    searcher=backend.searcher,
                    teachers=backend.teachers,
                    trainer=backend.trainer,
                    ledger=ledger,
                    observer=heard,
                    owner=owner,
                    policy=PurchasePolicy.of(config.teacher, metered=inputs.teacher.metered, names=inputs.classes),
                    evaluation_queries=evaluation,
                    whole_rounds=shared is not None,
                ),
            )
            record.watch(
                lambda: (
                    ledger.spent("training", owner) + ledger.spent("estimate", owner),
                    ledger.spent("evaluation", owner),
                )
            )
            observer.begin(
                rounds=rounds.last,
                budget=config.budget.queries,
                spent=ledger.spent("training", owner) + ledger.spent("estimate", owner),
                title=shown(directory.name),
            )
            for metrics in rounds.history():
                events.round_done(metrics)
                record.measured(metrics)
            yield rounds
    finally:
        record.watch(None)
        ledger.close()


def _check_teacher(ledger: Any, owner: str, identity: str, path: Path, observer: Observer) -> None:
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


def _check_ledger(ledger: Any, directory: RunDirectory, owner: str, path: Path) -> None:
    """A run that has begun goes on with the ledger that knows it, or it would pay a second time.

    Raises:
        LedgerError: the file knows nothing of this run.
    """
    if directory.has_begun() and not ledger.knows(owner):
        raise another_ledger(path)


def another_ledger(path: Path) -> LedgerError:
    """What to say of a ledger that knows nothing of a run that has begun."""
    return LedgerError(
        f"{path} knows nothing of this run, which has begun with another ledger file; bring that file back, or set "
        "ledger.path to where it is now"
    )
