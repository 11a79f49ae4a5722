"""A sweep from its config to its results."""

import contextlib
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from kdray.config.load import differences
from kdray.errors import Halted, LedgerError, RunDirectoryError, SweepError
from kdray.ledger.check import check_ledger
from kdray.ledger.store import Ledger
from kdray.observers import Observer
from kdray.runs.inputs import read_inputs, resolve
from kdray.sweeps.checks import Outlook, located, look_ahead
from kdray.sweeps.config import SweepConfig, dump_sweep
from kdray.sweeps.display import SweepDisplay
from kdray.sweeps.folder import SweepFolder, trial_name
from kdray.sweeps.outcome import SweepResult, write_results
from kdray.sweeps.results import Trial
from kdray.sweeps.trial import TrialPlan, TrialRuns
from kdray.teachers.http.secrets import Secrets
from kdray.utils.files import write_bytes

_STOPPING_S = 20.0  # for queries on their way when the user stops the sweep


def sweep(
    config: SweepConfig | None,
    folder: SweepFolder,
    *,
    resume: bool = False,
    display: SweepDisplay | None = None,
) -> SweepResult:
    """Run a sweep, or go on with the one in `folder`, and see it to its end.

    Args:
        config: as the user gave it; None: the one in `folder`.
        resume: go on with the sweep in `folder`; if it holds none, start it there.
        display: told what happens; closed at the end.

    Raises:
        KdrayError: something is wrong with the config, the folder or the cluster; then nothing was paid. Or no trial
            has a result.
        Halted: the user has stopped it.
    """
    display = display or SweepDisplay()
    with contextlib.ExitStack() as stack:
        stack.callback(display.close)
        if config is None or (resume and folder.is_sweep()):
            config = _recorded(folder, config)
        else:
            folder.check_free()
        config = located(config)  # now: Tune's processes work in other folders
        outlook = look_ahead(config)
        folder_is_new = not folder.is_sweep()
        if not folder_is_new and _is_complete(config, folder, outlook):
            display.note("the sweep is complete; nothing is asked again")
            result = write_results(config, folder)
            folder.ended.touch()
            return result

        from actors import environment

        environment.prepare()  # before the next lines, which import Ray
        from actors.cluster import check_fits, connect
        from actors.ledger import NamedLedger, RayLedger
        from actors.tuning import check_driver, check_optuna, run_trials

        if config.search == "optuna":
            check_optuna()
        stack.enter_context(connect())
        check_driver()
        check_fits(config.sweep.resources.bundles(), "sweep.resources", wait=config.sweep.resources.wait)
        folder.lock()
        stack.callback(folder.unlock)
        folder.ended.unlink(missing_ok=True)
        if folder_is_new and folder.is_sweep():  # between the look above and the lock
            raise RunDirectoryError(f"another process has just started a sweep in {folder.path}; choose another --out")
        secrets = _prepare_teacher(outlook, display)
        write_config(folder, config)
        identity = folder.identity()
        ledger = open_ledger(RayLedger, folder, config.sweep.budget.queries, identity)
        stack.callback(ledger.close)
        ledger.halt(None)
        plan = TrialPlan(
            folder=folder.path,
            identity=identity,
            config=config,
            open_ledger=partial(NamedLedger, identity, str(folder.ledger)),
            secrets=secrets,
            cwd=os.getcwd(),
            session=uuid.uuid4().hex,
        )
        watch = _Watch(folder, config.sweep.metric, ledger, display, plan.session)
        display.begin(str(folder.path), outlook.trials, config.sweep.metric)
        watch.show_all()
        with _stop_signals(watch):
            run_trials(_job(config, folder, outlook, plan), watch, resume=not folder_is_new)
        result = write_results(config, folder)
        _check_results(result, outlook, config.search)
        folder.ended.touch()
    return result


def _recorded(folder: SweepFolder, config: SweepConfig | None) -> SweepConfig:
    """The config to go on with: the one in the folder, with those fields of `config` that may change.

    Raises:
        RunDirectoryError: the folder holds no sweep, or another one.
    """
    recorded = folder.read_config()
    if config is None:
        return recorded
    given = located(config)
    may_change = recorded.resumable_paths()
    changed = [
        line
        for line in differences(recorded, given)
        if not any(line.partition(":")[0] == path or line.startswith(f"{path}.") for path in may_change)
    ]
    if changed:
        raise RunDirectoryError(
            f"{folder.path} holds a sweep of another config ({'; '.join(changed[:3])}); choose another --out, or go on "
            f"with the old one: kdray sweep --resume {folder.path}"
        )
    return given


def write_config(folder: SweepFolder, config: SweepConfig) -> None:
    """SWEEP/sweep.yaml, and the sweep's name."""
    folder.identity()
    text = dump_sweep(config).encode()
    if not folder.config.exists() or folder.config.read_bytes() != text:
        write_bytes(folder.config, text)


def open_ledger(make: Callable[..., Any], folder: SweepFolder, cap: int | None, identity: str) -> Any:
    """The ledger of the sweep, with the cap that it has now.

    Raises:
        LedgerError: a cap was taken away.
    """
    check_ledger(folder.ledger, field="sweep")
    if folder.ledger.exists():
        before = Ledger(folder.ledger)
        try:
            rows = before.read("SELECT cap FROM accounts WHERE owner = '' AND purpose = 'training' AND cap IS NOT NULL")
            if rows and cap is None:
                raise LedgerError("sweep.budget.queries: a cap cannot be taken away; give a higher one")
            if rows and rows[0][0] != cap:
                before.change_budget(cap or 0)
        finally:
            before.close()
    return make(folder.ledger, cap, name=identity)


def _prepare_teacher(outlook: Outlook, display: SweepDisplay) -> Secrets | None:
    """Make each teacher that is missing, once: trials would each train their own. Check it, and read its secrets."""
    observer = _Noting(display)
    secrets: Secrets | None = None
    seen: set[str] = set()
    for config in outlook.configs:
        if (key := config.teacher.model_dump_json()) not in seen:
            seen.add(key)
            read_inputs(resolve(config), observer=observer, ledger_here=False)
            if (more := config.teacher.read_secrets()) is not None:
                secrets = more if secrets is None else secrets.with_those_of(more)
    return secrets


class _Noting(Observer):
    def __init__(self, display: SweepDisplay) -> None:
        self._display = display

    def note(self, text: str) -> None:
        self._display.note(text)


def _is_complete(config: SweepConfig, folder: SweepFolder, outlook: Outlook) -> bool:
    ended = [trial for trial in folder.trials() if trial.state in ("finished", "stopped")]
    if config.search == "optuna":
        return len(ended) >= outlook.trials
    names = {trial.name for trial in ended}
    return all(folder.trial(values).path.name in names for values in outlook.points)


def _job(config: SweepConfig, folder: SweepFolder, outlook: Outlook, plan: TrialPlan) -> Any:
    from actors.tuning import TuneJob

    section = config.sweep
    return TuneJob(
        open_trial=partial(TrialRuns, plan),
        points=None if config.search == "optuna" else outlook.points,
        space={
            key: (domain.kind, domain.values if domain.values is not None else (domain.low, domain.high))
            for key, domain in config.domains.items()
        },
        samples=section.samples,
        seed=section.seed,
        metric=section.metric,
        mode=section.best,
        bundles=section.resources.bundles(),
        trials=None if section.resources.trials == "auto" else section.resources.trials,
        asha=(section.grace_rounds, section.reduction, outlook.rounds) if section.scheduler == "asha" else None,
        folder=folder.tune,
        scheduler_file=folder.scheduler,
    )


class _Watch:
    """Follows the trials: shows them, records which were stopped, and stops the sweep when the user wants it."""

    def __init__(self, folder: SweepFolder, metric: str, ledger: Any, display: SweepDisplay, session: str) -> None:
        self._folder, self._metric, self._ledger = folder, metric, ledger
        self._display, self._session = display, session
        self._trials: dict[str, Trial] = {}
        self._looked_at = 0.0
        self.stopping = threading.Event()

    def show_all(self) -> None:
        """Show the trials that an earlier session has begun."""
        self._trials = {trial.name: trial for trial in self._folder.trials()}
        for trial in list(self._trials.values())[-1:]:
            self._display.update(trial, list(self._trials.values()))

    def reported(self, values: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """See `actors.tuning.Watch`."""
        if not report.get("finished"):
            self._show(values)

    def ended(self, values: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """See `actors.tuning.Watch`."""
        if not report.get("finished"):
            self._folder.trial(values).put_state("stopped")
        self._show(values)

    def failed(self, values: Mapping[str, Any], reason: str, *, final: bool) -> bool:
        """See `actors.tuning.Watch`."""
        folder = self._folder.trial(values)
        own = folder.cause[1] == self._session
        if final and not own and folder.state not in ("finished", "stopped"):  # as a trial of the same values may be
            folder.fail(values, f"{reason}, again and again", self._session)
        if own or final:
            self._show(values)
        else:
            self._display.note(f"{folder.path.name}: {reason}; it is started again")
        return own

    def tick(self) -> None:
        """See `actors.tuning.Watch`."""
        if self.stopping.is_set():
            self._stop()
        if time.monotonic() - self._looked_at > 30:  # also tells the ledger's actor that it is still needed
            self._looked_at = time.monotonic()
            self._ledger.spent()

    def _stop(self) -> None:
        """Grant no more queries, and wait for the answers to those on their way: they are paid."""
        self._ledger.halt("the sweep is being stopped")
        deadline = time.monotonic() + _STOPPING_S
        while (open_ := self._ledger.reserved()) and time.monotonic() < deadline:
            time.sleep(0.2)
        left = f"; {open_:,} queries on their way count as charged" if open_ else ""
        raise Halted(f"the sweep was stopped{left}")

    def _show(self, values: Mapping[str, Any]) -> None:
        trial = self._folder.trial(values).read()
        self._trials[trial.name] = trial
        self._display.update(trial, list(self._trials.values()))


@contextlib.contextmanager
def _stop_signals(watch: _Watch) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the sweep after the queries on their way; a second Ctrl-C at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        watch.stopping.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_results(result: SweepResult, outlook: Outlook, search: str) -> None:
    """Refuse to call a sweep done in which trials neither ended nor failed.

    Raises:
        SweepError: so it is.
    """
    lost = [trial.name for trial in result.trials if trial.state in ("waiting", "running")]
    go_on = f"kdray sweep --resume {result.directory}"
    if lost:
        raise SweepError(f"{len(lost)} trials did not end ({', '.join(lost[:3])}); go on with: {go_on}")
    planned = [] if search == "optuna" else [trial_name(values) for values in outlook.points]
    begun = {trial.name for trial in result.trials}
    if not begun:
        raise SweepError(f"no trial started; look at 'ray status', then: {go_on}")
    if missing := [name for name in planned if name not in begun]:
        raise SweepError(f"{len(missing)} trials did not start ({', '.join(missing[:3])}); go on with: {go_on}")
