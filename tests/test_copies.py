"""Augmented copies of what was bought: which are drawn, what they look like, and the round that asks about them."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import command, digits_config, examples, on_workers
from hypothesis import given
from hypothesis import strategies as st

from kdray.config.load import load_config, parse_config
from kdray.errors import ConfigError
from kdray.report.page import write_report
from kdray.runs.copies import Copies
from kdray.runs.directory import RunDirectory
from kdray.runs.inputs import read_inputs
from kdray.runs.learning import learn
from kdray.runs.run import resume, run
from kdray.teachers.answers import training_targets
from kdray.training.augment.affine import Affine
from kdray.training.augment.base import Augment, Draw
from kdray.training.augment.crop import Crop
from kdray.training.augment.none import Nothing
from kdray.training.fitting import fit
from kdray.utils.seeds import torch_generator


def images(n: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize(("count", "whole", "more"), [(0, 0, 0), (3, 0, 3), (5, 1, 0), (12, 2, 2)])
def test_all_images_have_equally_many_copies_but_for_one(count, whole, more):
    ids = Copies(images(), Affine(), 0).drawn(count, np.random.default_rng(0))
    assert len(set(ids.tolist())) == count
    times = np.bincount(ids % 5, minlength=5)
    assert sorted(times.tolist()) == [whole] * (5 - more) + [whole + 1] * more


@examples(25)
@given(st.lists(st.integers(0, 24), max_size=8))
def test_a_copy_follows_from_its_number_alone(ids):
    copies = Copies(images(), Affine(), 7)
    alone = [
        Affine()(images()[k % 5][None], Draw.whole(torch_generator(7, "augmented copy", k), 1)).round().to(torch.uint8)
        for k in ids
    ]
    assert torch.equal(copies.render(np.array(ids, np.int64)), torch.cat([images()[:0], *alone]))


def test_copies_of_one_image_differ_and_know_it():
    copies = Copies(images(), Affine(), 7)
    first, second = copies.render(np.array([3, 8]))
    assert not torch.equal(first, second) and not torch.equal(first, images()[3])
    assert copies.describe(np.array([3, 8, 4])) == {"copy_of": [3, 3, 4], "copy": [0, 1, 0]}


def test_a_copy_is_another_image_where_there_is_one():
    even = torch.full((1, 1, 8, 8), 9, dtype=torch.uint8)  # its mirror image is itself
    made = Copies(torch.cat([images(), even]), Crop(flip=True), 0).render(np.arange(12))
    assert torch.equal(made, torch.cat([images().flip(-1), even]).repeat(2, 1, 1, 1))


class InPlace(Augment):
    """One of a user's that changes the images it is given."""

    kind: str = "in place"

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        return images.add_(1)


def test_the_images_stay_as_they_are_whatever_makes_the_copies():
    data = images()
    assert torch.equal(Copies(data, InPlace(), 0).render(np.arange(2 * len(data))), (images() + 1).repeat(2, 1, 1, 1))
    assert torch.equal(data, images())


@pytest.mark.parametrize(
    ("augment", "changes"),
    [
        (Nothing(), False),
        (Crop(), False),
        (Crop(shift=1), True),
        (Crop(flip=True), True),
        (Affine(), True),
        (Affine(degrees=0, scale=0, shear=0, shift=0), False),
        (Affine(degrees=0, scale=0, shear=0, shift=0, flip=True), True),
    ],
)
def test_an_augmentation_says_whether_it_changes_anything(augment: Augment, changes):
    assert augment.changes is changes
    data = images(40)
    assert torch.equal(augment(data, Draw.whole(torch.Generator().manual_seed(0), 40)).float(), data.float()) != changes


REQUERY = {"student__labels": "requery"}


@pytest.mark.parametrize("augment", ["none", "auto", {"kind": "crop"}])
def test_copies_need_an_augmentation_that_is_named(augment, make_config):
    for judged in ({"student__recipe": "auto"}, {"student__early_stop": {}}):
        with pytest.raises(ConfigError, match=r"judges by answers that are held out, but labels is requery"):
            make_config(student__labels="requery", student__augment="affine", **judged)
    with pytest.raises(ConfigError, match=r"labels is requery, .* name an augmentation such as affine"):
        make_config(**REQUERY, student__augment=augment)


def test_a_budget_without_copies_is_refused(make_config):
    with pytest.raises(ConfigError, match=r"budget\.queries: 4 left after round 0.*requery_share = 0\.1 .* reuse"):
        read_inputs(make_config(**REQUERY, student__requery_share=0.1, budget__queries=44))


def test_copies_of_nothing_are_refused(make_config):
    nothing = {"pool": "images", "labelled": {"source": "digits", "rows": "0:20", "size": 16}, "select__rounds": 0}
    with pytest.raises(ConfigError, match=r"nothing is bought before the last round.* set student\.labels to reuse"):
        read_inputs(make_config(**REQUERY, **nothing, select__strategy="margin"))


@pytest.mark.parametrize(
    ("changes", "schedule"),
    [
        ({}, [40, 30, 30, 60]),
        ({"student__requery_share": 0.25}, [40, 45, 45, 30]),
        ({"select__rounds": 0}, [40, 60]),
        ({"select": {"strategy": "margin", "schedule": "nested"}}, [40, 40, 20, 60]),
        ({"select": {"strategy": "rad", "m": "estimate", "estimate_queries": 10}}, [40, 50, 60]),
        ({"pool": {"kind": "auto", "share": 0.2}}, [40, 24, 24, 24, 48]),
        ({"pool": "images", "select": {"strategy": "margin"}, "images__count": 200}, [80, 40, 40]),
    ],
)
def test_the_last_round_has_its_share(changes, schedule, make_config):
    config = make_config(**REQUERY, **changes)
    inputs = read_inputs(config)
    assert inputs.schedule == schedule and inputs.copies == schedule[-1]
    assert config.last_round in (None, len(schedule) - 1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher_weights):
    """A run whose last round asks about copies of what the others bought."""
    config = parse_config(digits_config(teacher_weights, **REQUERY, student__early=0.5))
    return run(config, RunDirectory(tmp_path_factory.mktemp("copies") / "run"), local=True)


def test_copies_are_asked_about_and_counted(finished):
    directory = RunDirectory(finished.directory)
    rounds = [directory.read_labelled(number, 10) for number in range(4)]
    assert [len(part) for part in rounds] == [40, 30, 30, 60] and finished.receipt.queries == 160
    assert set(rounds[3].source) == {"augmented copy"}
    bought = torch.cat([part.images for part in rounds[:3]])
    assert torch.equal(Copies(bought, Crop(shift=1), 3).render(rounds[3].ids), rounds[3].images)
    chosen = directory.read_candidates(3)
    assert chosen.columns["copy_of"] == (rounds[3].ids % 100).tolist() and chosen.scores is None
    asked = read_inputs(load_config(directory.config)).teacher.answer(rounds[3].images)
    assert torch.allclose(asked.probs, rounds[3].answers.probs, atol=1e-5), "they are the answers to the copies"


def test_the_last_student_sees_what_was_asked_and_the_others_augmented_images(finished):
    directory = RunDirectory(finished.directory)
    spec = read_inputs(load_config(directory.config)).spec
    parts = [directory.read_labelled(number, 10) for number in range(4)]

    def student(number: int, augment: Augment) -> bytes:
        data = torch.cat([part.images for part in parts[: number + 1]])
        targets = torch.cat([training_targets(part.answers, None) for part in parts[: number + 1]])
        recipe = spec.recipe.model_copy(update={"augment": augment, "labels": "reuse"})
        return fit(replace(spec, recipe=recipe), data, targets, number, final=number == 3)[0]

    assert directory.artefact(3, "train").read_bytes() == student(3, Nothing()) != student(3, Crop(shift=1))
    assert directory.artefact(2, "train").read_bytes() == student(2, Crop(shift=1))


@pytest.mark.parametrize("last", ["candidates.parquet", "labelled.parquet", "student.safetensors"])
def test_a_run_that_goes_on_asks_about_the_same_copies(last, finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished.directory, copy)
    order = ["candidates.parquet", "labelled.parquet", "student.safetensors", "metrics.json"]
    for name in order[order.index(last) :]:
        (copy / "rounds" / "003" / name).unlink()
    result = resume(RunDirectory(copy), local=True)
    assert result.receipt.queries == 160, "what was asked about again is another image"
    for name in order[:3]:
        assert (copy / "rounds/003" / name).read_bytes() == (finished.directory / "rounds/003" / name).read_bytes()


def test_training_from_what_was_bought_sees_it_the_same_way(finished, tmp_path):
    directory = RunDirectory(finished.directory)
    curve = learn(directory, load_config(directory.config), out=tmp_path / "students")
    assert curve.points[-1].student.read_bytes() == directory.student.read_bytes()


def test_students_of_fewer_images_are_augmented_as_long_as_no_copies_are_among_them(finished, tmp_path):
    directory = RunDirectory(finished.directory)
    config = load_config(directory.config)
    curve = learn(directory, config, first=[70, 100, 101], out=tmp_path / "students")
    spec = read_inputs(config).spec
    images = torch.cat([directory.read_labelled(number, 10).images for number in range(4)])
    targets = torch.cat([training_targets(directory.read_labelled(number, 10).answers, None) for number in range(4)])
    for point, round, augment in zip(curve.points, (1, 2, 3), (Crop(shift=1), Crop(shift=1), Nothing()), strict=True):
        recipe = spec.recipe.model_copy(update={"augment": augment, "labels": "reuse"})
        first = images[: point.first], targets[: point.first]
        assert point.student.read_bytes() == fit(replace(spec, recipe=recipe), *first, round)[0], point.first


@pytest.mark.parametrize(
    "changes",
    [
        {"labelled": {"source": "digits", "rows": "0:20", "size": 16}, "select__rounds": 0},
        pytest.param(
            {"pool": "images", "select": {"strategy": "margin"}, "images__count": 200}, marks=pytest.mark.storm
        ),
        pytest.param(
            {"pool": {"kind": "auto", "of": ["mixup", {"kind": "pairs", "blend": "cutmix"}]}}, marks=pytest.mark.storm
        ),
    ],
)
def test_copies_are_of_what_was_bought_whatever_it_was(changes, make_config, tmp_path):
    result = run(make_config(**REQUERY, **changes), RunDirectory(tmp_path / "run"), local=True)
    directory, last = RunDirectory(result.directory), len(result.history) - 1
    bought = torch.cat([directory.read_labelled(number, 10).images for number in range(last)])
    copies = directory.read_labelled(last, 10)
    assert torch.equal(Copies(bought, Crop(shift=1), 3).render(copies.ids), copies.images)
    assert set(copies.source) == {"augmented copy"} and directory.is_complete(None)


def test_the_report_says_what_each_round_asked_about(finished):
    page = write_report([RunDirectory(finished.directory)]).read_text()
    for number, what in enumerate(["real images", "active-mixup", "active-mixup", "augmented copies"]):
        assert f"Round {number}: {what}</h3>" in page
    assert "copy of row 0 of labelled" in page


@pytest.mark.storm
@pytest.mark.xdist_group("ray")
def test_ray_asks_and_trains_the_same(finished, ray_local, tmp_path):
    config = on_workers(load_config(RunDirectory(finished.directory).config))
    done = run(config, RunDirectory(tmp_path / "run"))
    for name in ("rounds/003/candidates.parquet", "student.safetensors"):
        assert (done.directory / name).read_bytes() == (finished.directory / name).read_bytes(), name


def test_a_plan_says_what_copies_take(config_file):
    done = command("plan", config_file(**REQUERY))
    assert done.returncode == 0, done.stderr
    assert "160 = 40 for the images + 2 x 30 + 60 for augmented copies" in done.stdout
