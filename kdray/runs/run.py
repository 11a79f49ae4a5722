"""A run from its config to its result, in a run directory that can be killed and resumed at any moment."""

from collections.abc import Callable
from contextlib import ExitStack

from kdray.config.load import load_config
from kdray.config.root import Config
from kdray.errors import BudgetExceeded, RunDirectoryError
from kdray.observers import Observer
from kdray.runs.directory import RunDirectory, runs_folder
from kdray.runs.inputs import Data, InMemoryInputs, read_data, resolve
from kdray.runs.opening import changes_of_experiment, check_directory, open_run
from kdray.runs.result import Result, read_result
from kdray.runs.status import complete


def choose_directory(config: Config, name: str) -> RunDirectory:
    """The first of runs/NAME, runs/NAME-2, ... that is free or holds this very config."""
    for number in range(1, 10_000):
        run = RunDirectory(runs_folder() / (name if number == 1 else f"{name}-{number}"))
        if not run.is_run():
            if not run.path.exists() or (run.path.is_dir() and not any(run.path.iterdir())):
                return run
            continue
        recorded = load_config(run.config)
        # With another ledger it may be the same experiment, but not the same purchase.
        if not changes_of_experiment(recorded, resolve(config, recorded), strict=["ledger.path"]):
            return run
    raise RunDirectoryError(f"{runs_folder()} is full of runs named {name}; give --out")


def run(
    config: Config,
    directory: RunDirectory,
    *,
    local: bool = False,
    observer: Observer | None = None,
    in_memory: InMemoryInputs | None = None,
    finish: Callable[[RunDirectory], None] = lambda directory: None,
) -> Result:
    """Start a run, or go on with the one in `directory`, and see it to its end.

    Args:
        config: as the user gave it; the run directory gets it resolved.
        local: everything in this process, no Ray.
        observer: told what happens; closed at the end.
        in_memory: what comes from Python in place of files.
        finish: called after the last round, before the run counts as finished: it writes what belongs to the run.

    Raises:
        KdrayError: the config or a file it names is wrong; then nothing was paid or written. Or the teacher failed;
            then what was bought is kept, and running again continues.
    """
    observer = observer or Observer()
    with ExitStack() as stack:
        stack.callback(observer.close)
        if is_complete(config, directory):
            observer.note("the run is complete; nothing is asked again")
            finish(directory)
            complete(directory)
            return read_result(directory)
        with open_run(config, directory, local=local, observer=observer, in_memory=in_memory) as rounds:
            try:
                while rounds.step():
                    pass
            except BudgetExceeded as error:  # only lost answers lead here: the schedule itself fits the budget
                if not rounds.history():
                    raise
                rounds.note(str(error))
            finish(directory)
        return read_result(directory)


def is_complete(config: Config, directory: RunDirectory) -> bool:
    """Whether `directory` holds the finished run of `config`.

    Raises:
        RunDirectoryError: it holds another run, or something else.
    """
    recorded = load_config(directory.config) if directory.is_run() else None
    config = resolve(config, recorded)
    check_directory(directory, recorded, config)
    return recorded is not None and directory.is_complete(config.last_round)


def check(config: Config, directory: RunDirectory, *, in_memory: InMemoryInputs | None = None) -> Data:
    """What `run` would refuse of a new run before it makes the teacher. Nothing is written.

    Raises:
        KdrayError: see `run`.
    """
    config = resolve(config)
    check_directory(directory, None, config)
    directory.check_writable()
    return read_data(config, in_memory)


def resume(
    directory: RunDirectory,
    *,
    local: bool = False,
    observer: Observer | None = None,
    in_memory: InMemoryInputs | None = None,
    finish: Callable[[RunDirectory], None] = lambda directory: None,
) -> Result:
    """Go on with the run in `directory`; see `run`.

    Raises:
        RunDirectoryError: there is none.
        KdrayError: see `run`.
    """
    if not directory.is_run():
        raise RunDirectoryError(f"{directory.name} holds no run; start one with 'kdray run CONFIG'")
    config = load_config(directory.config)
    return run(config, directory, local=local, observer=observer, in_memory=in_memory, finish=finish)
