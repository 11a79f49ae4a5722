"""What kdray adds to Ray Tune, without a cluster: ASHA that survives a resume, and which failures are final."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import RayTaskError
from ray.tune.schedulers import TrialScheduler

from actors import tuning
from actors.cluster import refusal
from kdray.errors import LedgerError, TeacherError

GO_ON, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


class Watching:
    """A watch that says whether failures are kdray's own."""

    def __init__(self, own: bool = False) -> None:
        self.own, self.told = own, []

    def failed(self, values, reason, *, final):
        self.told.append((dict(values), reason))
        return self.own


@pytest.fixture
def session(tmp_path):
    """A sweep in this process, with ASHA's file in a folder of its own."""
    job = SimpleNamespace(scheduler_file=tmp_path / "scheduler.pkl")
    with tuning._driving(job, Watching()):
        yield job


def asha() -> tuning.RoundsASHA:
    """ASHA over rounds 1, 2 and 4, half of the trials go on; as Tune starts it."""
    scheduler = tuning.RoundsASHA(time_attr="round", grace_period=1, reduction_factor=2, max_t=5)
    assert scheduler.set_search_properties("accuracy", "max")
    return scheduler


def tell(scheduler, name: str, round: int, accuracy: float) -> str:
    trial = SimpleNamespace(trial_id=name)
    return scheduler.on_trial_result(None, trial, {"round": round, "accuracy": accuracy})


def test_asha_remembers_its_rungs_when_a_sweep_is_resumed(session):
    first = asha()
    for name in "abcd":
        first.on_trial_add(None, SimpleNamespace(trial_id=name))
    # Half go on: each is compared with the median of those before it.
    assert [tell(first, name, 1, value) for name, value in zip("abc", (0.5, 0.9, 0.8), strict=True)] == [GO_ON] * 3
    second = asha()  # the driver was killed, and Tune's restore made a new one
    second.on_trial_add(None, SimpleNamespace(trial_id="d"))
    assert tell(second, "d", 1, 0.7) == STOP == tell(first, "d", 1, 0.7)
    forgetful = tuning.ASHAScheduler(time_attr="round", grace_period=1, reduction_factor=2, max_t=5)
    forgetful.set_search_properties("accuracy", "max")
    forgetful.on_trial_add(None, SimpleNamespace(trial_id="d"))
    assert tell(forgetful, "d", 1, 0.7) == GO_ON  # what Tune's own would have done


def test_rounds_that_are_reported_again_change_no_rung(session):
    scheduler = asha()
    for name in "ab":
        scheduler.on_trial_add(None, SimpleNamespace(trial_id=name))
    assert [tell(scheduler, "a", round, 0.5 + round / 10) for round in range(3)] == [GO_ON] * 3
    rungs = [dict(recorded) for _, recorded in scheduler._brackets[0]._rungs]
    again = asha()
    again.on_trial_add(None, SimpleNamespace(trial_id="a"))
    assert [tell(again, "a", round, 0.5 + round / 10) for round in range(3)] == [GO_ON] * 3
    assert [dict(recorded) for _, recorded in again._brackets[0]._rungs] == rungs


@pytest.mark.parametrize(("own", "left"), [(True, 0), (False, 8)])
def test_only_a_process_that_died_is_started_again(own, left):
    watch = Watching(own)
    trial = SimpleNamespace(config={"values": {"a": 1}}, max_failures=8, get_pickled_error=lambda: None)
    with tuning._driving(None, watch):
        tuning._Follower().on_trial_recover(1, [trial], trial)
    assert trial.max_failures == left
    assert watch.told == [({"a": 1}, "its process died")]


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (TeacherError("the teacher is down"), "the teacher is down"),
        (LedgerError("no ledger"), "no ledger"),
        (RuntimeError("a bug"), "RuntimeError: a bug"),
    ],
)
def test_the_reason_of_a_failure_is_one_line(cause, reason):
    error = RayTaskError("step", "Traceback ...", cause)
    assert tuning._reason(SimpleNamespace(get_pickled_error=lambda: error)) == reason


def test_deaths_in_an_earlier_session_do_not_count_in_this_one(session):
    trial = SimpleNamespace(trial_id="a", max_failures=0, run_metadata=SimpleNamespace(num_failures=9))
    follower = tuning._Follower()
    follower.on_step_begin(1, [trial])
    assert (trial.max_failures, trial.run_metadata.num_failures) == (8, 0)
    trial.run_metadata.num_failures = 3
    follower.on_step_begin(2, [trial])
    assert trial.run_metadata.num_failures == 3


def test_tunes_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "99")
    monkeypatch.delenv("TUNE_DISABLE_SIGINT_HANDLER", raising=False)
    import os

    with tuning._tune_environment():
        assert os.environ["TUNE_GLOBAL_CHECKPOINT_S"] == "1" and os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "1"
    assert os.environ["TUNE_GLOBAL_CHECKPOINT_S"] == "99" and "TUNE_DISABLE_SIGINT_HANDLER" not in os.environ


def test_a_trainable_is_one_class_with_one_name_wherever_it_is_made(tmp_path):
    """Tune refuses to restore a sweep whose trainable has another name."""
    made = [tuning.make_trainable(lambda values: Path(values["x"])) for _ in range(2)]
    assert {each.__name__ for each in made} == {"KdrayTrial"}


def test_a_cluster_of_other_versions_is_refused_with_both():
    from ray._private.utils import check_version_info

    with pytest.raises(RuntimeError) as refused:
        check_version_info({"ray_version": "2.9.0", "python_version": "3.8.1"}, "this process")
    message = refusal("10.0.0.1:6379", refused.value)
    assert message.startswith(
        "RAY_ADDRESS=10.0.0.1:6379: the cluster runs Ray 2.9.0 on Python 3.8.1, this process Ray "
    )
    assert message.endswith("both must have the same versions")
