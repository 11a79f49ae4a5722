"""MLflow. Its own settings say where: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and so on."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from kdray.observers.tracking import PROJECT, Tracked, Tracker, register_tracker

_TAG = "kdray.run"
_LONGEST = 500  # characters of a parameter, which all stores take


@register_tracker
class Mlflow(Tracker):
    """A run of MLflow, found again by a tag with the key of kdray's run, so a resumed run goes on there too."""

    name: ClassVar[str] = "mlflow"
    needs: ClassVar[tuple[str, ...]] = ("mlflow",)

    def __init__(self) -> None:
        self._client: Any = None
        self._id = ""

    def start(self, run: Tracked) -> None:
        """See `Tracker`."""
        from mlflow import MlflowClient

        self._client = client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = client.get_experiment_by_name(name)
        number = client.create_experiment(name) if experiment is None else experiment.experiment_id
        known = client.search_runs([number], filter_string=f"tags.`{_TAG}` = '{run.key}'", max_results=1)
        if known:
            self._id = known[0].info.run_id
            client.update_run(self._id, status="RUNNING")
            return
        self._id = client.create_run(number, run_name=run.name, tags={_TAG: run.key}).info.run_id
        for key, value in _flat(run.config):
            client.log_param(self._id, key, str(value)[:_LONGEST])

    def log(self, figures: Mapping[str, float], queries: int) -> None:
        """See `Tracker`."""
        for name, value in figures.items():
            self._client.log_metric(self._id, name, value, step=queries)

    def attach(self, page: Path) -> None:
        """See `Tracker`."""
        self._client.log_artifact(self._id, str(page))

    def end(self) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._id)


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
