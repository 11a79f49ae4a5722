"""Candidates that nobody pays for: students label them and one more learns from them; rounds that train shorter."""

import io
from dataclasses import replace

import pytest
import test_students as students
import torch
from conftest import command, digits_config
from test_students import TINY, images, recipe, soft_targets
from torch import nn

from kdray.config.load import parse_config
from kdray.models.classifier import build_model
from kdray.pools.mixup import MixupPool
from kdray.runs.directory import RunDirectory
from kdray.runs.learning import learn
from kdray.runs.run import run
from kdray.training.augment import Crop, Draw
from kdray.training.augment.none import Nothing
from kdray.training.fitting import StudentSpec
from kdray.training.length import early
from kdray.training.recipe import StudentSection
from kdray.training.trainer import LocalTrainer
from kdray.training.unpaid import Labeller, Unpaid
from kdray.utils.seeds import torch_seed


def section(**changes) -> StudentSection:
    some = {"epochs": 3, "batch_size": 4, "device": "cpu", "model": "small-cnn", "augment": "none"}
    return StudentSection(**some | changes)


def spec(**changes) -> StudentSpec:
    pool = MixupPool(images(6, seed=3), (0.4, 0.6))
    return StudentSpec(
        card=students.card(), mean=[0.4], std=[0.3], recipe=section(**changes), seed=5, threads=1, pool=pool
    )


class Fixed(nn.Module):
    """Logits of an image that follow from its first pixel."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, 0, 0].float().view(-1, 1) * self.factor * torch.tensor([1.0, 0.0, -1.0])


def test_the_label_of_a_candidate_is_the_mean_of_the_students_on_what_is_trained_on():
    pool = MixupPool(images(6, seed=3), (0.4, 0.6))
    nets = [Fixed(0.01), Fixed(-0.002)]
    labeller = Labeller(Unpaid(students=2), pool, nets, Crop(shift=1))
    drawn, answers = labeller.draw(Draw.whole(torch.Generator().manual_seed(0), 50))
    assert drawn.shape == (50, *TINY) and answers.shape == (50, 3)
    torch.testing.assert_close(answers, (nets[0](drawn).softmax(1) + nets[1](drawn).softmax(1)) / 2)
    assert not answers.requires_grad
    plain, _ = Labeller(Unpaid(), pool, nets, Nothing()).draw(Draw.whole(torch.Generator().manual_seed(0), 50))
    every = pool.render(torch.arange(len(pool)))
    places = [(every == image).flatten(1).all(dim=1).nonzero() for image in plain]
    assert all(len(place) for place in places)
    assert len({int(place[0]) for place in places}) > 15, "candidates are drawn from the whole pool"


@pytest.mark.parametrize(("share", "bought", "fresh"), [(0.5, 128, 128), (0.2, 100, 25), (0.75, 4, 12), (0.01, 3, 1)])
def test_the_share_of_unpaid_candidates_in_a_step(share, bought, fresh):
    assert Labeller(Unpaid(share=share), spec().pool, [], Nothing()).count(bought) == fresh


def test_the_last_student_learns_from_candidates_that_the_others_label():
    data, targets, told = images(9), soft_targets(9), []
    how = spec(unpaid={"students": 2, "share": 0.5})
    content, result = LocalTrainer(how).fit(data, targets, 2, lambda *progress: told.append(progress[:2]))
    assert told == [(done, 9) for done in range(1, 10)], "three networks of three epochs"
    assert len(result.losses) == 3
    alone, _ = LocalTrainer(spec()).fit(data, targets, 2)
    assert content != alone
    assert LocalTrainer(how).fit(data, targets, 2, final=False)[0] == alone, "rounds before the last do without"
    assert LocalTrainer(how).fit(data, targets, 2)[0] == content


def test_a_labelling_student_is_a_student_of_another_seed():
    """With one labelling student, its answers are those of a student of that seed, trained alone."""
    from kdray.training.loop import train

    data, targets, how = images(9), soft_targets(9), spec(unpaid={"students": 1})
    seed = torch_seed(5, "student 0 that labels")
    one = build_model("small-cnn", TINY, 3, seed=seed, mean=[0.4], std=[0.3])
    train(one, data, targets, section(), seed=seed, round=2, threads=1)
    model = build_model("small-cnn", TINY, 3, seed=5, mean=[0.4], std=[0.3])
    labeller = Labeller(Unpaid(students=1), how.pool, [one.to(memory_format=torch.channels_last)], section().augment)
    train(model, data, targets, section(), seed=5, round=2, threads=1, unpaid=labeller)
    by_hand = students.model_bytes(model, students.card())
    assert LocalTrainer(how).fit(data, targets, 2)[0] == by_hand


def test_the_students_that_label_may_be_another_network():
    data, targets = images(9), soft_targets(9)
    own = LocalTrainer(spec(unpaid={"students": 1})).fit(data, targets, 2)[0]
    same_name = LocalTrainer(spec(unpaid={"students": 1, "model": "small-cnn"})).fit(data, targets, 2)[0]
    other = LocalTrainer(spec(unpaid={"students": 1, "model": "test_unpaid:linear"})).fit(data, targets, 2)[0]
    assert same_name == own != other


def linear(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A network of one layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))


@pytest.mark.parametrize("at", [2, 5, 8])
def test_a_training_of_several_students_that_is_killed_goes_on_to_the_same_bits(at, monkeypatch):
    monkeypatch.setattr("kdray.training.saved.EVERY_S", 0.0)
    data, targets, states, seen = images(9), soft_targets(9), [], []
    how = spec(unpaid={"students": 2})
    whole = LocalTrainer(how).fit(data, targets, 2)

    def killed(done: int, of: int, loss: float) -> None:
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalTrainer(how).fit(data, targets, 2, killed, on_state=states.append)
    again = LocalTrainer(how).fit(data, targets, 2, lambda *progress: seen.append(progress[0]), last=states[-1])
    assert again == whole
    # The state that was kept is that of the epoch before, but the first epoch of a network keeps none of its own yet.
    assert seen == list(range(at, 10))


def test_what_was_said_of_a_labelling_student_is_said_after_a_resume(monkeypatch):
    monkeypatch.setattr("kdray.training.saved.EVERY_S", 0.0)
    data, targets, states = images(9), soft_targets(9), []
    how = spec(unpaid={"students": 1}, lr=1e5, epochs=20)
    _, whole = LocalTrainer(how).fit(data, targets, 2)

    def killed(done: int, of: int, loss: float) -> None:
        if states and len(torch.load(io.BytesIO(states[-1]), weights_only=True)["done"]) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalTrainer(how).fit(data, targets, 2, killed, on_state=states.append)
    _, again = LocalTrainer(how).fit(data, targets, 2, last=states[-1])
    assert again.notes() == whole.notes() and whole.notes()[0].startswith("student 0 that labels: ")


@pytest.mark.parametrize("augment", [{"kind": "crop", "shift": 2, "flip": True}, "standard", "high", "affine"])
def test_a_process_whose_share_of_a_batch_has_no_unpaid_candidates_draws_none(augment):
    how = section(augment=augment)
    pool = MixupPool(images(6), [0.5])
    labeller = Labeller(Unpaid(), pool, [build_model("small-cnn", TINY, 3, seed=0)], how.augment)
    drawn, answers = labeller.draw(Draw(torch.Generator().manual_seed(0), slice(0, 0), 1))
    assert drawn.shape == (0, *TINY) and answers.shape == (0, 3)


@pytest.mark.parametrize(("share", "steps"), [(1.0, 30), (0.5, 15), (0.01, 1)])
def test_rounds_before_the_last_train_for_a_share_of_the_steps(share, steps):
    how = section(epochs=10, early=share)
    short = early(how, 12)
    assert (short.epochs, short.steps) == ((10, "auto") if share == 1 else (None, steps))
    model = spec(epochs=10, early=share)
    _, result = LocalTrainer(model).fit(images(12), soft_targets(12), 0, final=False)
    assert result.steps == steps
    _, result = LocalTrainer(model).fit(images(12), soft_targets(12), 0)
    assert result.steps == 30


def test_early_rounds_of_a_teachers_recipe_are_not_there():
    assert early(recipe(epochs=4), 12) == recipe(epochs=4)
    plain = replace(spec(), recipe=recipe())
    assert LocalTrainer(plain).fit(images(9), soft_targets(9), 0, final=False)[1].steps == 6


def test_a_run_trains_its_last_student_alone_on_unpaid_candidates(teacher_weights, tmp_path):
    changes = {"student__epochs": 2, "student__unpaid": {"students": 1, "share": 0.5}, "student__early": 0.5}
    found = run(parse_config(digits_config(teacher_weights, **changes)), RunDirectory(tmp_path / "run"), local=True)
    run_directory = RunDirectory(tmp_path / "run")
    steps = [run_directory.phases(number)["train"]["training"]["steps"] for number in range(3)]
    batches = [-(-count // 64) for count in (40, 100, 160)]
    assert steps == [batches[0], batches[1], 2 * batches[2]]
    assert found.receipt.queries == 160, "labels of students cost nothing"
    curve = learn(run_directory, parse_config(read_config(run_directory)), out=tmp_path / "students")
    assert curve.points[-1].student.read_bytes() == run_directory.student.read_bytes()


def test_unpaid_candidates_need_the_images(teacher_weights, tmp_path):
    run(parse_config(digits_config(teacher_weights, student__epochs=2)), RunDirectory(tmp_path / "run"), local=True)
    config = tmp_path / "run" / "config.yaml"
    text = config.read_text()
    assert "source: digits" in text
    config.write_text(text.replace("source: digits", f"source: folder\n  path: {tmp_path}/gone", 1))
    done = command("train", tmp_path / "run", "student.unpaid={}", cwd=tmp_path)
    assert done.returncode == 2
    assert "student.unpaid needs the images of" in done.stderr and "Traceback" not in done.stderr


def read_config(directory: RunDirectory) -> dict:
    import yaml

    return yaml.safe_load(directory.config.read_text())
