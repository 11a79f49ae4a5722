"""TensorBoard events of a sweep, read back by TensorBoard itself."""

import math

import pytest
from sweep_trials import after, trial
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

from kdray.sweeps.events import write_events
from kdray.sweeps.results import Trial


def scalars(folder):
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def tab(folder):
    """What the HPARAMS tab shows: its columns, its figures, and a row for each trial."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    context = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder))))
    request, user = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=100), RequestContext()
    request.allowed_statuses.extend(api_pb2.Status.values())
    experiment = get_experiment.Handler(user, context, "", api_pb2.GetExperimentRequest()).run()
    columns = sorted(info.name for info in experiment.hparam_infos)
    figures = sorted(info.name.tag for info in experiment.metric_infos)
    rows = {}
    for group in list_session_groups.Handler(user, context, "", request).run().session_groups:
        values = {
            key: getattr(value, value.WhichOneof("kind")) if value.WhichOneof("kind") else None
            for key, value in group.hparams.items()
        }
        rows[group.sessions[0].name] = (values, {value.name.tag: value.value for value in group.metric_values})
    return columns, figures, rows


def test_scalars_are_means_over_the_seeds_against_queries_asked(tmp_path):
    histories = [
        [after(0, 0.5, paid=10, agreement=0.5), after(1, 0.75, paid=20, reused=4)],
        [after(0, 1.0, paid=20, agreement=0.5), after(1, 0.75, paid=30, loss=math.nan)],
    ]
    both = Trial(name="a", values={"w": 1}, state="running", cause="", seeds=(0, 1), histories=histories)
    write_events(tmp_path / "events", [both], "student_accuracy")
    assert scalars(tmp_path / "events" / "a") == {
        "student_accuracy": [(15, 0.75), (27, 0.75)],
        "agreement": [(15, 0.5)],
        "loss": [(15, 0.5)],
    }


def test_the_hparams_tab_has_the_values_and_figures_of_each_trial(tmp_path):
    trials = [
        trial("failed", state="failed", cause="x", w=0.5, m=None, on=True, kind="a", lambdas=[0.3, 0.7]),
        trial("good", (0.5, 0.75), w=1, m=0.05, on=False, kind="b", lambdas="auto"),
    ]
    write_events(tmp_path / "events", trials, "student_accuracy")
    columns, figures, rows = tab(tmp_path / "events")
    assert columns == ["kind", "lambdas", "m", "on", "w"]
    assert figures == ["agreement", "loss", "student_accuracy", "success_rate"]
    assert rows["failed"] == ({"w": 0.5, "m": "null", "on": True, "kind": "a", "lambdas": "[0.3, 0.7]"}, {})
    assert rows["good"] == (
        {"w": 1.0, "m": "0.05", "on": False, "kind": "b", "lambdas": "auto"},
        {"student_accuracy": 0.625, "loss": 0.5},
    )


def test_a_path_that_is_not_utf_8_is_shown_with_codes(tmp_path):
    trials = [trial("a", (0.5,), path="/a/\udce9"), trial("b", (0.5,), path="/b")]
    write_events(tmp_path / "events", trials, "student_accuracy")
    _, _, rows = tab(tmp_path / "events")
    assert rows["a"][0] == {"path": "/a/\\xe9"} and rows["b"][0] == {"path": "/b"}


def test_the_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "events"
    write_events(folder, [trial("old", (0.5,), w=1), trial("kept", (0.5,), w=2)], "loss")
    write_events(folder, [trial("kept", (0.75,), w=2)], "loss")
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["kept"]
    assert scalars(folder / "kept")["student_accuracy"] == [(100, 0.75)]
    assert [path.name for path in tmp_path.iterdir()] == ["events"]


@pytest.mark.parametrize("trials", [[], [trial("a", state="waiting")]], ids=["no trial", "no value"])
def test_nothing_to_tell(tmp_path, trials):
    write_events(tmp_path / "events", trials, "loss")
    assert (tmp_path / "events").is_dir()
