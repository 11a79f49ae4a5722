"""What comes out of a sweep: its result in Python, and the files that are written of it."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from kdray.config.load import dump_config
from kdray.config.money import price_of_sweep
from kdray.ledger.store import Ledger
from kdray.runs.inputs import resolve
from kdray.sweeps.config import SweepConfig, dump_sweep
from kdray.sweeps.folder import SweepFolder
from kdray.sweeps.results import Trial, best_trial, lead, scope
from kdray.utils.files import shown, write_bytes


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """A sweep, finished or not.

    Attributes:
        directory: where it is.
        trials: that have begun, by name.
        metric: what was compared.
        best: the best finished trial, or None.
        scope: among which trials the best was found, and by what.
        lead: how sure it is that it is the best.
        bought: queries charged, all trials together.
    """

    directory: Path
    trials: list[Trial]
    metric: str
    best: Trial | None
    scope: str
    lead: str
    bought: int

    @property
    def failed(self) -> list[Trial]:
        """Trials that have no result, each with its cause."""
        return [trial for trial in self.trials if trial.state == "failed"]


def write_results(config: SweepConfig, folder: SweepFolder) -> SweepResult:
    """Write the tables, the page, the events and best.yaml of what the trials have measured so far."""
    # matplotlib, pyarrow, tensorboardX and scikit-learn
    from kdray.sweeps.events import write_events
    from kdray.sweeps.page import SweepFacts, write_page
    from kdray.sweeps.tables import write_tables

    metric, mode = config.sweep.metric, config.sweep.best
    trials = folder.trials()
    best = best_trial(trials, metric, mode)
    price, currency = price_of_sweep(config.base, config.space)
    command = ""
    if best is not None:
        write_bytes(folder.best, dump_config(resolve(config.config_of(best.values))).encode())
        command = f"kdray run {shlex.quote(shown(folder.best))} ledger.path={shlex.quote(shown(folder.ledger))}"
    bought = _bought(folder)
    write_tables(folder.path, trials, metric, mode)
    write_events(folder.path / "events", trials, metric)
    facts = SweepFacts(
        title=shown(folder.path.name),
        metric=metric,
        mode=mode,
        cap=config.sweep.budget.queries,
        bought=bought,
        price=price,
        currency=currency,
        config=dump_sweep(config),
        command=command,
    )
    write_page(folder.path, facts, trials)
    return SweepResult(
        directory=folder.path,
        trials=trials,
        metric=metric,
        best=best,
        scope=scope(trials, metric, mode),
        lead=lead(trials, metric, mode),
        bought=bought,
    )


def _bought(folder: SweepFolder) -> int:
    """Queries charged, for training and for estimates of m."""
    if not folder.ledger.exists():
        return 0
    ledger = Ledger(folder.ledger, read_only=True)
    try:
        return ledger.spent("training") + ledger.spent("estimate")
    finally:
        ledger.close()
