"""Weights & Biases. Its own settings say where: WANDB_PROJECT, WANDB_MODE=offline, WANDB_DIR and so on."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from kdray.observers.tracking import PROJECT, Tracked, Tracker, register_tracker


@register_tracker
class Wandb(Tracker):
    """A run of Weights & Biases with the key of kdray's run, so a resumed run goes on there too."""

    name: ClassVar[str] = "wandb"
    needs: ClassVar[tuple[str, ...]] = ("wandb",)

    def __init__(self) -> None:
        self._run: Any = None

    def start(self, run: Tracked) -> None:
        """See `Tracker`."""
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.key,
            name=run.name,
            config=dict(run.config),
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            resume="allow",
            settings=wandb.Settings(console="off", disable_code=True, disable_git=True),
        )
        self._run.define_metric("queries")
        self._run.define_metric("*", step_metric="queries")

    def log(self, figures: Mapping[str, float], queries: int) -> None:
        """See `Tracker`."""
        self._run.log({**figures, "queries": queries})

    def attach(self, page: Path) -> None:
        """See `Tracker`."""
        import wandb

        report = wandb.Artifact(f"report-{self._run.id}", type="report")
        report.add_file(str(page))
        self._run.log_artifact(report)

    def end(self) -> None:
        """See `Tracker`."""
        self._run.finish()
