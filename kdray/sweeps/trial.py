"""One trial: the runs of its seeds, done in lock-step, so that after each round their mean can be compared."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdray.config.root import Config
from kdray.errors import BudgetLost, Halted, KdrayError, SweepError
from kdray.observers.display import PlainDisplay
from kdray.runs.backend import Backend, open_backend
from kdray.runs.directory import RunDirectory
from kdray.runs.inputs import Inputs
from kdray.runs.loop import Rounds
from kdray.runs.opening import Shared, open_run
from kdray.runs.run import is_complete
from kdray.sweeps.config import SweepConfig, with_absolute_values
from kdray.sweeps.folder import SweepFolder, TrialFolder, read_history
from kdray.sweeps.results import METRICS
from kdray.teachers.http.secrets import Secrets
from kdray.training.trainer import LocalTrainer

Report = dict[str, Any]
"""What a trial reports after a round: `round`, `done` and `finished`, the mean of each figure over the seeds, and
`asked`, `bought` and `saved` up to it."""


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """All that a trial needs, in whichever process it runs.

    Attributes:
        folder: SWEEP, which that process must see under the same path.
        identity: of the sweep; another one in `folder` is another sweep.
        config: of the sweep, with absolute paths.
        open_ledger: the ledger of all trials.
        secrets: of the teacher.
        cwd: where the sweep was started: the user's modules may lie there.
        session: this start of the sweep. A trial that failed in it is not tried again in it.
    """

    folder: Path
    identity: str
    config: SweepConfig
    open_ledger: Callable[[], Any]
    secrets: Secrets | None
    cwd: str
    session: str

    def seeds(self, config: Config) -> list[int]:
        """The seeds of a trial."""
        return [config.seed + k for k in range(self.config.sweep.seeds)]

    def run_config(self, values: Mapping[str, Any], seed: int) -> Config:
        """The config of one run of a trial."""
        resources = self.config.sweep.resources
        own = {"seed": seed, "ledger.path": str(SweepFolder(self.folder).ledger), "resources.trainer.where": "driver"}
        if resources.scoring_workers:
            own |= {"resources.scoring_workers": resources.scoring_workers}
            own |= {"resources.scoring_gpus": resources.scoring_gpus}
        return self.config.config_of({**values, **own})


class TrialRuns:
    """The runs of one trial. `step` does one round of each; `close` ends its workers.

    Args:
        plan: of the sweep.
        values: of the trial, key with dots -> value. Relative paths start from the folder of the sweep's start.
    """

    def __init__(self, plan: TrialPlan, values: Mapping[str, Any]) -> None:
        self._plan, self._values = plan, dict(values)
        if not plan.config.space:  # of a tuner of the user's own; a sweep's are absolute already
            self._values = with_absolute_values(plan.config, values, plan.cwd)
        self._stack = ExitStack()
        self._backend: Backend | None = None
        self._runs: list[_Run] | None = None
        self._reported = 0
        self._folder: TrialFolder | None = None

    def step(self) -> Report:
        """The next round of every seed. Rounds that are on disk already are reported without any work.

        Raises:
            KdrayError: a run failed; the trial's folder says why. `Halted`: the sweep is being stopped.
        """
        folder = self._open()
        if folder.state == "stopped":
            return {"round": self._reported, "done": True, "finished": False}
        with self._failures_kept(folder):
            if self._runs is None:
                self._runs = self._open_runs(folder)
            reached = [run.reach(self._reported) for run in self._runs]
            # Where a seed has lost its budget, the round that all seeds have is the trial's last.
            number = self._reported if all(reached) else self._reported - 1
            last = number < self._reported or all(run.done(number) for run in self._runs)
            report = self._report(folder, number, done=last)
        self._reported += 1
        if last:
            folder.put_state("finished")
            self.close()
        return report

    def close(self) -> None:
        """End the workers and unlock the run directories. Closing again changes nothing."""
        self._stack.close()
        self._runs, self._backend = None, None

    def _open(self) -> TrialFolder:
        """The trial's folder.

        Raises:
            SweepError: this process does not see the sweep's folder, or the trial has failed in this session.
            ConfigError: its values give no valid config, as those that Optuna proposes may not.
        """
        if self._folder is not None:
            return self._folder
        sweep = SweepFolder(self._plan.folder)
        if not sweep.is_sweep() or sweep.identity() != self._plan.identity:
            raise SweepError(
                f"node {os.uname().nodename} does not see the sweep in {sweep.path}; put it on a file system that all "
                "nodes share"
            )
        if os.path.isdir(self._plan.cwd):
            os.chdir(self._plan.cwd)
        folder = sweep.trial(self._values)
        self._stack.callback(os.close, folder.lock())
        cause, session = folder.cause
        if session == self._plan.session:
            self._stack.close()
            raise SweepError(cause)
        try:
            with self._failures_kept(folder):
                folder.begin(self._values, self._plan.seeds(self._plan.config.config_of(self._values)))
        except BaseException:
            self._stack.close()  # a trial of the same values may wait
            raise
        if folder.state not in ("stopped", "finished"):
            folder.put_state("running")
        self._folder = folder
        return folder

    @contextmanager
    def _failures_kept(self, folder: TrialFolder) -> Iterator[None]:
        """What leaves this block, but for a halt, is the cause of the trial's failure."""
        try:
            yield
        except Halted:
            raise
        except Exception as error:  # a part of the user's own may raise anything; to start again would not help it
            reason = str(error) if isinstance(error, KdrayError) else f"{type(error).__name__}: {error}"
            folder.fail(self._values, reason, self._plan.session)
            raise

    def _open_runs(self, folder: TrialFolder) -> list["_Run"]:
        configs = [
            (seed, self._plan.run_config(self._values, seed))
            for seed in self._plan.seeds(self._plan.config.config_of(self._values))
        ]
        complete = [is_complete(config, folder.run(seed)) for seed, config in configs]
        observer = PlainDisplay(self._stack.enter_context(folder.log.open("a", encoding="utf-8")))
        shared = Shared(open_ledger=self._plan.open_ledger, open_workers=self._open_workers, secrets=self._plan.secrets)
        runs = []
        for (seed, config), whole in zip(configs, complete, strict=True):
            rounds = None
            if not whole:
                observer.note(f"seed {seed}")
                opened = open_run(config, folder.run(seed), observer=observer, shared=shared)
                rounds = self._stack.enter_context(opened)
            runs.append(_Run(folder.run(seed), rounds))
        return runs

    @contextmanager
    def _open_workers(self, inputs: Inputs) -> Iterator[Backend]:
        """One set of workers for all seeds; each trains its own student."""
        if self._backend is None:
            local = self._plan.config.sweep.resources.scoring_workers == 0
            observer = PlainDisplay(open(os.devnull, "w"))  # noqa: SIM115
            self._backend = self._stack.enter_context(open_backend(inputs, local=local, observer=observer))
        yield replace(self._backend, trainer=LocalTrainer(inputs.spec))

    def _report(self, folder: TrialFolder, number: int, *, done: bool) -> Report:
        trial = folder.read().up_to(number)
        report: Report = {"round": number, "done": done, "finished": done}
        for metric in METRICS:
            here = [measured for measured in trial.measured(metric) if measured.round == number]
            if here:
                report[metric] = here[0].mean
        return report | {"asked": trial.asked, "bought": trial.bought, "saved": trial.saved}


class _Run:
    """One seed's run.

    Args:
        directory: of the run.
        rounds: its loop; None if it is finished.
    """

    def __init__(self, directory: RunDirectory, rounds: Rounds | None) -> None:
        self._directory, self._rounds = directory, rounds

    def reach(self, number: int) -> bool:
        """Do all phases up to the end of a round.

        Returns:
            False where the budget went to queries that were never answered; the run ends before the round then, as it
            would alone.

        Raises:
            BudgetLost: so it did in the first round.
        """
        if self._rounds is None:
            return True
        try:
            while not self._directory.artefact(number, "evaluate").exists() and self._rounds.step():
                pass
        except BudgetLost as error:
            if number == 0:
                raise
            self._rounds.note(str(error))
            return False
        return True

    def done(self, number: int) -> bool:
        """Whether no round comes after this one."""
        last = len(read_history(self._directory)) - 1 if self._rounds is None else self._rounds.last
        return number >= last
