"""`auto`: what is chosen by agreement with answers that were held out, and how a student is made of the choice."""

from dataclasses import replace

import pytest
import torch
from conftest import digits_config
from hypothesis import given
from hypothesis import strategies as st
from test_students import card, images, soft_targets
from torch import nn

import kdray.training.fitting
import kdray.training.workload
from kdray.config.load import parse_config
from kdray.errors import ConfigError
from kdray.observers import Observer
from kdray.pools.mixup import MixupPool
from kdray.report.page import write_report
from kdray.runs.directory import RunDirectory
from kdray.runs.result import read_result
from kdray.runs.run import run
from kdray.training.augment import Draw, augments
from kdray.training.augment.affine import Affine
from kdray.training.augment.auto import Auto
from kdray.training.choice import FOLDS, SHARE, Choice, choose, networks
from kdray.training.fitting import StudentSpec, fit, smallest_batch
from kdray.training.length import early, shortened
from kdray.training.recipe import StudentSection
from kdray.training.workload import Training, probed, seconds_of, workload
from kdray.utils.seeds import torch_seed


class Says(nn.Module):
    """Gives the class that the pixels say, but for a share of the images."""

    def __init__(self, wrong: int) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        number, label = x[:, 0, 0, 0].long(), x[:, 0, 0, 1].long()
        return 9.0 * torch.eye(3)[(label + (number % 10 < self.wrong)) % 3]


def numbered(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    data, labels = torch.zeros(count, 1, 8, 8, dtype=torch.uint8), torch.arange(count) % 3
    data[:, 0, 0, 0], data[:, 0, 0, 1] = torch.arange(count), labels
    return data, torch.eye(3)[labels]


def chosen(wrong: dict[str, int], count: int = 90) -> tuple[Choice, list[tuple[str, int, list[int]]]]:
    seen = []

    def fitted(name: str, some: torch.Tensor, targets: torch.Tensor, fold: int) -> nn.Module:
        seen.append((name, fold, some[:, 0, 0, 0].tolist()))
        return Says(wrong[name])

    return choose(list(wrong), *numbered(count), fit=fitted, seed=3, round=1), seen


def test_the_recipe_of_the_highest_agreement_is_chosen_and_every_answer_is_held_out_once():
    found, seen = chosen({"a": 4, "b": 1, "c": 0, "d": 5, "e": 9})
    assert found.name == "c"
    assert found.agreement["c"] == 1.0
    assert found.answers == {"a": 60, "b": 90, "c": 90, "d": 30, "e": 30}
    assert found.agreement["b"] == pytest.approx(0.9)
    assert [name for name, _, _ in seen] == ["a", "b", "c", "d", "e", "a", "b", "c", "b", "c"]
    held = [set(range(90)) - set(numbers) for name, _, numbers in seen if name == "c"]
    assert sorted(number for part in held for number in part) == list(range(90))


def test_of_equal_recipes_the_first_is_chosen():
    assert chosen({"a": 2, "b": 2, "c": 2})[0].name == "a"


def test_a_single_answer_cannot_be_held_out():
    found, seen = chosen({"a": 2, "b": 0}, count=1)
    assert (found.name, seen) == ("a", [])
    assert found.note("student.augment") == "student.augment: auto took a, as there are no answers to hold out"


def test_the_note_says_what_was_chosen_and_why():
    note = chosen({"a": 4, "b": 1, "c": 0})[0].note("student.augment")
    assert note.startswith("student.augment: auto chose c, which agrees with 100.0% of 90 held-out answers; ")
    assert "b 90.0% of 90" in note


PLANS = {1: [1, 1, 1], 2: [2, 2, 2], 3: [3, 2, 2], 4: [4, 2, 2], 5: [5, 3, 2], 6: [6, 3, 2], 7: [7, 4, 2], 9: [9, 5, 3]}


@given(st.sampled_from(list(PLANS)), st.integers(2, 500))
def test_the_plan_is_what_is_trained(recipes, count):
    plan = networks(recipes, count)
    assert sum(held for _, held in plan) == count
    assert [number for number, _ in plan] == PLANS[recipes][: len(plan)] and len(plan) == min(FOLDS, count)
    trained = []
    choose(
        [str(n) for n in range(recipes)], torch.zeros(count, 1, 2, 2, dtype=torch.uint8), torch.eye(3)[[0] * count],
        fit=lambda name, some, targets, fold: trained.append((fold, len(some))) or Says(0), seed=0, round=0,
    )  # fmt: skip
    assert trained == [(fold, count - held) for fold, (number, held) in enumerate(plan) for _ in range(number)]


# Augmentation and recipe


@pytest.mark.parametrize(
    ("given", "shape", "names"),
    [
        ({}, (1, 28, 28), {"affine", "affine, flip", "crop", "crop, flip", "standard", "none"}),
        ({"flip": False}, (3, 32, 32), {"affine", "crop", "none"}),
        ({}, (4, 8, 8), {"affine", "affine, flip", "crop", "crop, flip", "none"}),
    ],
)
def test_the_kinds_that_are_tried_fit_the_images(given, shape, names):
    kinds = Auto(**given).candidates(shape)
    assert set(kinds) == names and next(iter(kinds)) == "affine"
    for one in kinds.values():
        one.check(shape)


def test_auto_itself_changes_no_image():
    with pytest.raises(ConfigError, match="auto is chosen for a student"):
        augments.parse("auto")(images(2), Draw.whole(torch.Generator(), 2))


def spec(**changes) -> StudentSpec:
    some = {"epochs": 10, "batch_size": 8, "device": "cpu", "model": "small-cnn", "augment": "none"}
    recipe = StudentSection(**some | changes)
    return StudentSpec(card=card(), mean=[0.4], std=[0.3], recipe=recipe, seed=5, threads=1)


@pytest.mark.parametrize("field", ["augment", "recipe"])
def test_the_student_is_that_of_the_recipe_that_was_chosen(field):
    data, targets, told = images(30), soft_targets(30), []
    content, result = fit(spec(**{field: "auto"}), data, targets, 2, lambda *progress: told.append(progress[:2]))
    choice = result.choices[field]
    given = spec().recipe
    changes = {"augment": Auto().candidates((1, 8, 8))[choice.name]} if field == "augment" else {}
    changes = changes or given.variants()[choice.name]
    alone, _ = fit(StudentSpec(**{**vars(spec()), "recipe": given.model_copy(update=changes)}), data, targets, 2)
    assert content == alone
    assert [done for done, _ in told] == list(range(1, told[-1][1] + 1)), "every epoch of every network is told"
    assert sum(len(some) for some in (choice.agreement, choice.answers)) == 2 * (6 if field == "augment" else 5)


def test_the_agreement_is_that_of_students_trained_for_a_share_of_the_steps_on_the_other_answers():
    data, targets = images(30), soft_targets(30)
    result = fit(spec(augment="auto"), data, targets, 2)[1]
    choice = result.choices["augment"]
    best, part = choice.name, None
    agreeing = 0
    from kdray.models.classifier import build_model
    from kdray.training.loop import train
    from kdray.utils.seeds import torch_generator

    part = torch.randperm(30, generator=torch_generator(5, "cross-validation", 2)) % FOLDS
    how = shortened(spec(augment=Auto().candidates((1, 8, 8))[best]).recipe, 30, SHARE)
    assert how.steps == 12
    for fold in range(FOLDS):
        seed = torch_seed(5, f"cross-validation {fold}")
        model = build_model("small-cnn", (1, 8, 8), 3, seed=seed, mean=[0.4], std=[0.3])
        train(model, data[part != fold], targets[part != fold], how, seed=seed, round=2, threads=1)
        with torch.inference_mode():
            agreeing += int((model(data[part == fold]).argmax(1) == targets[part == fold].argmax(1)).sum())
    assert choice.agreement[best] == pytest.approx(agreeing / 30)


def test_rounds_before_the_last_do_not_choose():
    data, targets = images(30), soft_targets(30)
    how = spec(augment="auto", recipe="auto")
    content, result = fit(how, data, targets, 1, final=False)
    assert result.choices == {}
    assert early(how.recipe, 30).augment == Affine()
    assert content == fit(spec(augment="affine"), data, targets, 1)[0]


@pytest.mark.storm
def test_a_choice_that_is_killed_goes_on_to_the_same_bits(monkeypatch):
    monkeypatch.setattr("kdray.training.saved.EVERY_S", 0.0)
    data, targets, states, seen = images(30), soft_targets(30), [], []
    whole = fit(spec(augment="auto"), data, targets, 2)

    def killed(done: int, of: int, loss: float) -> None:
        if done == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(spec(augment="auto"), data, targets, 2, killed, on_state=states.append)
    again = fit(spec(augment="auto"), data, targets, 2, lambda *told: seen.append(told[0]), last=states[-1])
    assert again == whole
    assert seen[0] in (13, 14), "networks that were done are not trained again"


def test_a_run_says_what_was_chosen_in_its_log_metrics_and_report(teacher_weights, tmp_path):
    directory, notes = RunDirectory(tmp_path / "run"), []

    class Listens(Observer):
        def note(self, text: str) -> None:
            notes.append(text)

    config = parse_config(digits_config(teacher_weights, student__epochs=2, student__augment="auto"))
    found = run(config, directory, local=True, observer=Listens())
    told = found.history[-1].training
    chosen = told["choices"]["augment"]
    assert chosen["agreement"][chosen["chosen"]] <= 1 and len(chosen["agreement"]) == 6
    assert told["notes"] == [note for note in notes if note.startswith("student.augment: auto chose ")]
    assert found.history[0].training["choices"] == {}
    page = write_report([directory]).read_text()
    assert f"auto chose {chosen['chosen']}" in page
    assert f"Round 2: trained for {told['steps']} steps on 160 images." in page
    assert read_result(directory).history == found.history


def test_the_workload_of_a_plan_is_what_a_run_trains():
    """Three rounds; in the last one six kinds are tried, of which three and two go on, and two students label."""
    how = section(augment="auto", early=0.5, unpaid={"students": 2, "share": 0.75, "model": "lenet5"}, epochs=4)
    some = workload(how, [10, 20, 30], (1, 8, 8))
    own = "small-cnn"
    assert some == [
        (own, 1, 4, 5), (own, 1, 6, 7), (own, 6, 5, 7), (own, 3, 5, 7), (own, 2, 5, 7), ("lenet5", 2, 16, 8),
        (own, 1, 16, 32),
    ]  # fmt: skip


def section(**changes) -> StudentSection:
    return StudentSection(**{"batch_size": 8, "device": "cpu", "model": "small-cnn", **changes})


def test_a_plan_measures_how_long_training_takes():
    how = section(steps=50)
    some = workload(how, [16], (1, 8, 8))
    seconds = probed(some, how, (1, 8, 8), 3, probe_s=0.05, threads=1)
    assert seconds.keys() == {"small-cnn"}
    assert seconds["small-cnn"] > 0
    own = some[-1]  # 50 steps of 8 images
    assert seconds_of([own, own._replace(number=3)], {"small-cnn": 0.25}) == 4 * 50 * 8 * 0.25


@pytest.fixture
def trained(monkeypatch):
    """What each training of a probe gave."""
    real, results = kdray.training.workload.train, []

    def train(*arguments, **named):
        results.append(real(*arguments, **named))
        return results[-1]

    monkeypatch.setattr("kdray.training.workload.train", train)
    return results


@pytest.mark.parametrize("changes", [{"lr": 1e38, "clip_norm": None}, {"early_stop": {"holdout": 0.5, "patience": 1}}])
def test_a_probe_of_a_training_does_all_its_steps(changes, trained):
    how = section(steps=50, **changes)
    assert probed(workload(how, [16], (1, 8, 8)), how, (1, 8, 8), 3, probe_s=0.2, threads=1)["small-cnn"] > 0
    assert [len(result.losses) for result in trained] == [result.steps for result in trained]  # of one batch an epoch


def test_a_probe_of_a_short_training_is_no_longer(trained):
    some = [Training("small-cnn", 1, 5, 8), Training("small-cnn", 3, 7, 8)]
    probed(some, section(), (1, 8, 8), 3, probe_s=60.0, threads=1)
    assert [result.steps for result in trained] == [2, 2, 26]


def test_a_probe_of_a_long_training_is_its_first_steps(trained):
    how = section(steps=50)
    assert probed(workload(how, [16], (1, 8, 8)), how, (1, 8, 8), 3, probe_s=0.0, threads=1)["small-cnn"] > 0
    assert [result.steps for result in trained] == [2]


class Wild(StudentSection):
    """One of its variants diverges at once."""

    def variants(self) -> dict:
        """See `StudentSection`."""
        return {"wild": {"lr": 1e38, "clip_norm": None}, "as given": {}}


@pytest.mark.storm
def test_a_recipe_that_diverges_is_not_chosen_and_stops_nothing():
    data, labels = torch.zeros(48, 1, 8, 8, dtype=torch.uint8), torch.arange(48) % 3
    for n, k in enumerate(labels.tolist()):
        data[n, 0, 2 * k : 2 * k + 2] = 200
    how = Wild(recipe="auto", steps=100, batch_size=16, device="cpu", model="small-cnn")
    result = fit(StudentSpec(**{**vars(spec()), "recipe": how}), data, torch.eye(3)[labels], 0)[1]
    assert result.choices["recipe"].name == "as given" and result.choices["recipe"].agreement["wild"] == 0
    assert result.diverged is None


def test_a_training_that_goes_on_knows_which_recipes_could_not_be_trained(monkeypatch):
    how = Wild(recipe="auto", steps=20, batch_size=16, device="cpu", model="small-cnn")
    some, states = StudentSpec(**{**vars(spec()), "recipe": how}), []
    data, targets = images(48), soft_targets(48)
    whole = fit(some, data, targets, 0, on_state=lambda state: None)

    def keep_one(state: bytes) -> None:
        states.append(state)
        if len(states) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("kdray.training.saved.EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        fit(some, data, targets, 0, on_state=keep_one)
    assert fit(some, data, targets, 0, last=states[-1], on_state=lambda state: None) == whole


def test_the_smallest_batch_is_that_of_the_smallest_training():
    some = spec(batch_size=8, augment="auto")
    assert [smallest_batch(some, count) for count in (16, 200)] == [5, 7]
    assert [smallest_batch(some, count, final=False) for count in (16, 200)] == [8, 8]


def test_students_that_label_say_so_where_their_loss_was_not_finite(monkeypatch):
    pool = MixupPool(images(12), [0.5])
    some = replace(spec(unpaid={"students": 2, "share": 0.5}, epochs=3), pool=pool)
    real, count = kdray.training.fitting.train, iter(range(9))

    def train(*arguments, **named):
        result = real(*arguments, **named)
        if next(count) == 1:
            result.diverged, result.kept = 5, 4
        return result

    monkeypatch.setattr("kdray.training.fitting.train", train)
    _, result = fit(some, images(12), soft_targets(12), 0)
    (note,) = result.notes()
    assert note.startswith("student 1 that labels: training stopped at step 5 of")
