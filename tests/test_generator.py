"""IDEAL's generator: its losses, networks and inner loop, and the pool of what it draws, in runs."""

import copy
import itertools
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Notes, StopAtPhase, command, examples, on_workers
from hypothesis import given
from hypothesis import strategies as st
from processes import processes
from torch import nn
from torch.nn import functional as F

from kdray.config.load import load_config
from kdray.errors import ConfigError, PoolExhausted, TrainingError
from kdray.generate.base import GENERATORS, build_generator
from kdray.generate.losses import generator_loss, information_loss
from kdray.generate.train import GeneratorRecipe, balanced_labels, codes_of, train_generator
from kdray.models.checkpoint import load_student, model_bytes
from kdray.models.classifier import build_model
from kdray.pools.base import pools
from kdray.pools.remade import Basis
from kdray.report.curve import curve_of
from kdray.runs.directory import RunDirectory
from kdray.runs.inputs import read_inputs
from kdray.runs.learning import learn
from kdray.runs.opening import open_run
from kdray.runs.plan import seconds_of_making
from kdray.runs.run import resume, run
from kdray.runs.students import BEGINS_ANEW
from kdray.select.balance import relative_entropy
from kdray.training.fitting import fit, with_start
from kdray.training.loop import train
from kdray.training.recipe import StudentSection

SHAPES = [(1, 28, 28), (3, 32, 32), (1, 16, 16), (2, 5, 9)]

# Losses


def test_the_information_loss_is_worked_out_by_hand():
    probs = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])  # the mean is (1/2, 1/2, 0, 0)
    assert information_loss(probs).item() == pytest.approx(2 * 0.5 * math.log(0.5) / 4)
    assert information_loss(torch.full((3, 10), 0.1)).item() == pytest.approx(-math.log(10) / 10)
    assert information_loss(torch.eye(5)[:1]).item() == 0


@examples(30)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 1000))
def test_the_information_loss_is_that_of_a_plain_sum_within_its_bounds(rows, classes, seed):
    probs = torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)).mul(3).double().softmax(dim=1)
    means = [sum(probs[row, k].item() for row in range(rows)) / rows for k in range(classes)]
    loss = information_loss(probs).item()
    assert loss == pytest.approx(sum(p * math.log(p) for p in means) / classes, abs=1e-12)
    assert -math.log(classes) / classes - 1e-12 <= loss <= 1e-12
    assert information_loss(probs.flip(0)).item() == pytest.approx(loss), "the order of a batch does not matter"


def test_a_class_that_never_occurs_leaves_the_gradient_finite():
    probs = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    information_loss(probs).backward()
    assert probs.grad.isfinite().all() and probs.grad[0, 1] < probs.grad[0, 0], "more of the class lowers the loss"


@pytest.mark.parametrize("shape", [(3,), (0, 3), (3, 0)])
def test_the_information_loss_wants_a_batch(shape):
    with pytest.raises(ValueError, match=r"\[B, K\]"):
        information_loss(torch.ones(shape))


def test_the_loss_of_a_generator_is_the_sum_of_its_parts():
    logits, labels = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 2])
    entropy, information = F.cross_entropy(logits, labels), information_loss(logits.softmax(dim=1))
    assert generator_loss(logits, labels, 5.0) == entropy + 5 * information
    assert generator_loss(logits, labels, None) == entropy
    assert generator_loss(logits, labels, 2.0, cross_entropy=False) == 2 * information
    with pytest.raises(ValueError, match="needs the cross-entropy"):
        generator_loss(logits, labels, None, cross_entropy=False)


# Networks


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_network_makes_images_of_any_shape(name, shape):
    generator = build_generator(name, 12, shape, seed=1).eval()
    codes = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = generator(codes)
    assert images.shape == (6, *shape) and images.min() >= 0 and images.max() <= 1
    assert images.std(dim=0).mean() > 1e-4, "an image depends on its code"
    again, other = (build_generator(name, 12, shape, seed=seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(value, again[key]) for key, value in generator.state_dict().items())
    assert any(not torch.equal(value, other[key]) for key, value in again.items())


def test_networks_are_small_medium_and_large():
    sizes = [sum(p.numel() for p in build_generator(name, 110, (3, 32, 32), 0).parameters()) for name in GENERATORS]
    assert sizes == sorted(sizes)


# The inner loop


def student_of(shape=(1, 16, 16), classes=4, name="small-cnn"):
    return build_model(name, shape, classes, seed=5).eval().requires_grad_(False)


@pytest.mark.parametrize(
    "name", [name if name == "dcgan" else pytest.param(name, marks=pytest.mark.storm) for name in GENERATORS]
)
def test_steps_lower_the_loss_and_leave_the_student_alone(name):
    student, generator = student_of(), build_generator(name, 8 + 4, (1, 16, 16), seed=0)
    before = copy.deepcopy(student.state_dict())
    told = []
    losses = train_generator(
        generator,
        student,
        GeneratorRecipe(steps=12, batch=16),
        classes=4,
        noise=8,
        conditional=True,
        random=torch.Generator().manual_seed(0),
        on_progress=lambda done, of: told.append((done, of)),
    )
    assert len(losses) == 13 and losses[-1] < losses[0] - 0.002 and told[-1] == (12, 12)
    assert not student.training and not generator.training
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert all(weight.grad is None for weight in student.parameters())


def test_batch_normalisation_ends_with_the_statistics_of_one_batch_of_the_trained_generator():
    generator, seen = build_generator("dcgan", 8 + 4, (1, 16, 16), seed=0), []
    layer = next(part for part in generator.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm))
    layer.register_forward_hook(lambda own, inputs, _: seen.append(inputs[0].detach()) if own.training else None)
    recipe, random = GeneratorRecipe(steps=3, batch=16), torch.Generator().manual_seed(0)
    train_generator(generator, student_of(), recipe, classes=4, noise=8, conditional=True, random=random)
    assert len(seen) == 3 + 1, "the steps, and the batch that settles it"
    means = [batch.transpose(0, 1).flatten(1).mean(dim=1) for batch in seen]
    assert torch.allclose(layer.running_mean, means[-1], atol=1e-6)
    assert not torch.allclose(layer.running_mean, means[-2], atol=1e-4)


def test_steps_are_those_of_torchs_adam_to_the_bit():
    class Idle(nn.Module):
        """Has a weight that no image depends on, and one that is not to be trained."""

        def __init__(self):
            super().__init__()
            self.network = build_generator("dcgan", 8 + 4, (1, 16, 16), seed=0)
            self.unused = nn.Parameter(torch.ones(2))
            self.fixed = nn.Parameter(torch.tensor(0.5), requires_grad=False)

        def forward(self, codes):
            return self.network(codes) * self.fixed

    here, there, student = Idle(), Idle(), student_of()
    recipe = GeneratorRecipe(steps=3, batch=8)
    random = torch.Generator().manual_seed(0)
    losses = train_generator(here, student, recipe, classes=4, noise=8, conditional=True, random=random)

    random, labels = torch.Generator().manual_seed(0), balanced_labels(8, 4)
    optimizer = torch.optim.Adam(there.parameters(), lr=recipe.lr)
    for step in range(3):
        images = there.train()(codes_of(torch.randn(8, 8, generator=random), labels, 4, conditional=True))
        loss = generator_loss(student(images * 255.0), labels, recipe.weight, cross_entropy=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.item() == losses[step]
    assert all(torch.equal(a, b) for a, b in zip(here.parameters(), there.parameters(), strict=True))


def test_a_new_process_trains_without_torchs_compiler():
    """Its import takes seconds, which a plan would take for those of a step."""
    process = processes.Process(target=train_both)
    process.start()
    process.join()
    assert process.exitcode == 0


def train_both() -> None:
    """Ends its process with 0 where that has trained a student and a generator without the compiler."""
    if "torch._dynamo" in sys.modules:
        sys.exit("the process began with it")
    student = build_model("mlp", (1, 8, 8), 4, seed=0)
    some, targets = torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.full((8, 4), 0.25)
    for optimizer in ("sgd", "adamw"):
        train(student, some, targets, StudentSection(steps=1, optimizer=optimizer, augment="none"), seed=0, threads=1)
    student.eval().requires_grad_(False)
    recipe, random = GeneratorRecipe(steps=1, batch=8), torch.Generator().manual_seed(0)
    generator = build_generator("dcgan", 12, (1, 8, 8), 0)
    train_generator(generator, student, recipe, classes=4, noise=8, conditional=True, random=random)
    sys.exit("torch._dynamo" in sys.modules)


def test_codes_say_the_label_or_do_not():
    noise, labels = torch.ones(2, 4), torch.tensor([2, 0])
    assert codes_of(noise, labels, 3, conditional=True).tolist() == [[1, 1, 1, 1, 0, 0, 2], [1, 1, 1, 1, 2, 0, 0]]
    assert codes_of(noise, labels, 3, conditional=False) is noise


@given(st.integers(1, 60), st.integers(1, 12))
def test_labels_are_balanced_as_far_as_it_goes(count, classes):
    counts = torch.bincount(balanced_labels(count, classes), minlength=classes)
    assert counts.sum() == count and counts.max() - counts.min() <= 1


# The pool

SMALL = {"kind": "generator", "steps": 2, "batch": 8, "noise": 8, "candidates": 100}


def pool_of(shape=(1, 16, 16), seed=3, **changes):
    return pools.parse(SMALL | changes).build(torch.zeros(2, *shape, dtype=torch.uint8), seed)


def basis(number=1, student=None, **more):
    nothing = torch.empty(0, 1, 16, 16, dtype=torch.uint8)
    given_ = {"student": student or student_of(), "images": nothing, "targets": torch.empty(0, 4)}
    return Basis(number=number, device=torch.device("cpu"), **given_, **more)


@pytest.fixture(scope="module")
def made():
    pool = pool_of()
    return pool.made(1, pool.make(basis()).tensors)


@examples(20)
@given(ids=st.lists(st.integers(0, 99), max_size=70))
def test_an_image_follows_from_its_id_in_any_company(made, ids):
    every = made.render(torch.arange(100))
    ids = torch.tensor(ids, dtype=torch.int64)
    assert torch.equal(made.render(ids), every[ids])
    assert torch.equal(torch.cat([every[:0], *made.batches(ids, 7)]), every[ids])
    assert made.describe(ids) == {"wanted": [k % 4 for k in ids.tolist()]}


def test_a_round_draws_what_its_generator_makes(made):
    assert (made.num_groups, made.group_size, made.image_shape, made.source) == (100, 1, (1, 16, 16), "generator")
    images = made.render(torch.arange(100))
    assert images.dtype == torch.uint8 and len(torch.unique(images.flatten(1), dim=0)) == 100
    for wrong in (-1, 100):
        with pytest.raises(IndexError):
            made.render(torch.tensor([wrong]))


def test_making_again_gives_the_same_bits_and_rounds_differ(made):
    pool = pool_of()
    first, again, second = (pool.make(basis(number)) for number in (1, 1, 2))
    assert first.facts == again.facts and first.tensors.keys() == again.tensors.keys()
    assert all(torch.equal(value, again.tensors[name]) for name, value in first.tensors.items())
    ids = torch.arange(100)
    assert torch.equal(pool.made(1, first.tensors).render(ids), made.render(ids))
    rows = torch.cat([made.render(ids), pool.made(2, second.tensors).render(ids)]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == 200, "no image of a round is one of another"
    assert not torch.equal(pool_of(seed=4).render(ids), pool_of(seed=3).render(ids))


@pytest.mark.parametrize(
    "fields",
    [{"weight": None}, {"cross_entropy": False, "weight": 2.0}, {"steps": 3, "batch": 12, "lr": 0.01}],
    ids=("no information loss", "no cross-entropy", "others"),
)
def test_table_4_changes_the_recipe(fields):
    usual = {"steps": 5, "batch": 250, "lr": 1e-3, "weight": 5.0, "cross_entropy": True}
    assert pools.parse({"kind": "generator", **fields}).recipe == GeneratorRecipe(**usual | fields)


def test_without_the_cross_entropy_the_information_loss_is_all():
    losses = pool_of(cross_entropy=False, weight=2.0).make(basis()).facts["losses"]
    assert all(-2 * math.log(4) / 4 - 1e-6 <= loss <= 0 for loss in losses), losses
    assert pool_of(weight=None).make(basis()).facts["losses"][0] > 0.5, "a cross-entropy of four classes"


def test_a_generator_of_noise_alone_draws_too():
    pool = pool_of(conditional=False)
    made = pool.made(1, pool.make(basis()).tensors)
    assert made.render(torch.arange(100)).unique(dim=0).shape[0] == 100
    told, alone = (one._generator(4, 1, (1, 16, 16)) for one in (pool_of(), pool))
    weights = [sum(part.numel() for part in network.parameters()) for network in (told, alone)]
    assert weights[1] < weights[0], "it gets no label"


def test_a_generator_may_go_on_from_the_round_before():
    anew, on = pool_of(), pool_of(restart=False)
    last = anew.make(basis()).tensors
    assert on.make(basis()).facts == anew.make(basis()).facts, "in round 1 there is nothing to go on from"
    losses = [pool.make(basis(2, last=last)).facts["losses"] for pool in (anew, on)]
    assert losses[0] == anew.make(basis(2)).facts["losses"] and losses[1][0] != losses[0][0]


def test_one_that_diverges_is_not_asked_about():
    with pytest.raises(
        TrainingError, match=r"pool\.lr: .* round 2 diverged, .* rate of 1e\+36 and an .* weight 5; .*weight$"
    ):
        pool_of(lr=1e36).make(basis(2))
    with pytest.raises(TrainingError, match=r"pool\.lr: .* rate of 1e\+36; the rest .* with a lower pool\.lr$"):
        pool_of(lr=1e36, weight=None).make(basis(2))


def test_ask_below_keeps_candidates_of_which_the_student_is_unsure():
    student = student_of()
    every = pool_of(candidates=2000)
    every = every.made(1, every.make(basis(student=student)).tensors)
    confidence = student(every.render(torch.arange(2000))).softmax(dim=1).amax(dim=1)
    middle = float(confidence.median())
    pool = pool_of(ask_below=middle)
    done = pool.make(basis(student=student))
    kept = pool.made(1, done.tensors)
    wanted = torch.arange(2000)[confidence < middle][:100]
    assert torch.equal(done.tensors["kept"], wanted) and len(kept) == 100 and not done.notes
    assert torch.equal(kept.render(torch.arange(100)), every.render(wanted))
    assert kept.describe(torch.arange(100)) == {"wanted": (wanted % 4).tolist()}


def test_ask_below_says_where_too_few_are_left():
    student = student_of()
    surest = student(pool_of().render(torch.arange(100))).softmax(dim=1).amax(dim=1)
    few = (float(surest.min()) + 1 / 4) / 2
    with pytest.raises(PoolExhausted, match=r"pool\.ask_below: .* all 2,048 candidates that round 1 tried"):
        pool_of(ask_below=few).make(basis(student=student))


def test_ask_below_a_share_that_every_answer_reaches_is_refused_before_a_generator_is_trained():
    words = r"pool\.ask_below: a student of 4 classes is at least 0\.25 sure of every image, and none is below 0\.25\."
    with pytest.raises(TrainingError, match=words):
        pool_of(ask_below=0.25).make(basis(student=student_of()))


def test_what_does_not_divide_evenly_is_said_once():
    student = student_of(classes=3)
    first = pool_of(candidates=100).make(basis(student=student))
    assert first.notes == [
        "pool.batch: 8 images do not divide evenly among 3 classes; the first 2 have one more each",
        "pool.candidates, or select.per_round where it is auto: 100 images do not divide evenly among 3 classes; the "
        "first 1 have one more each",
    ]
    assert pool_of(candidates=100).make(basis(2, student=student)).notes == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"steps": 0}, r"pool\.steps: .* 0"),
        ({"weight": 0}, r"pool\.weight: the weight .* above 0, got 0; null trains without it"),
        ({"weight": -5}, r"above 0, got -5"),
        ({"weight": float("nan")}, r"pool\.weight: .* nan"),
        ({"weight": None, "cross_entropy": False}, r"leaves the generator no loss"),
        ({"batch": 1}, r"pool\.batch"),
        ({"lr": 0}, r"pool\.lr"),
        ({"ask_below": 1.5}, r"pool\.ask_below"),
        ({"network": "gan"}, r"pool\.network"),
        ({"candidates": 0}, r"pool\.candidates"),
        ({"lambdas": [0.5]}, r"pool\.lambdas"),
    ],
)
def test_bad_fields_are_refused(fields, words, make_config):
    with pytest.raises(ConfigError, match=words):
        make_config(pool={"kind": "generator"} | fields)


# Runs

DRAWN = {"source": "drawn", "pool": "lines", "size": 16, "colour": "grey", "count": 20}
IDEAL = {
    "images": DRAWN,
    "teacher__answers": "hard",
    "budget__queries": 120,
    "budget__evaluation": 0,
    "pool": {"kind": "generator", "steps": 2, "batch": 20},
    "select": {"strategy": "random", "first": 0, "rounds": 3},
    "student": {
        "model": "small-cnn", "steps": 6, "batch_size": 40, "augment": "none", "start": "last", "replay": "none",
    },
}  # fmt: skip


def ideal(**changes) -> dict:
    """`IDEAL` with changes, which shares nothing with it."""
    return copy.deepcopy(IDEAL | changes)


def entropies(done) -> list[float | None]:
    """Of all answers after each round, where there are any."""
    labels = torch.cat([part.answers.labels for part in done.labelled])
    until = [metrics.queries for metrics in done.history]
    return [pytest.approx(relative_entropy(labels[:count], 10)) if count else None for count in until]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher_weights):
    """IDEAL to the letter: no image, no replay, one student."""
    from conftest import digits_config

    from kdray.config.load import parse_config

    config = parse_config(digits_config(teacher_weights, **ideal()))
    return run(config, RunDirectory(tmp_path_factory.mktemp("ideal") / "run"), local=True)


def test_ideal_asks_once_about_every_sample_of_balanced_rounds(finished):
    directory = RunDirectory(finished.directory)
    assert [m.queries for m in finished.history] == [0, 40, 80, 120] and finished.receipt.queries == 120
    assert [m.images for m in finished.history] == [0, 40, 40, 40], "without replay"
    assert [m.relative_entropy for m in finished.history] == entropies(finished), "of all answers, not the newest"
    assert finished.history[0].loss is None and finished.history[1].loss is not None
    for number in (1, 2, 3):
        wanted = directory.read_candidates(number).columns["wanted"]
        assert np.bincount(wanted, minlength=10).tolist() == [4] * 10
    images = torch.cat([directory.read_labelled(number, 10).images for number in (1, 2, 3)])
    assert len(torch.unique(images.flatten(1), dim=0)) == 120


def test_a_student_that_went_on_is_another_when_it_is_trained_at_once_and_that_is_said(finished, tmp_path):
    directory, notes = RunDirectory(finished.directory), Notes()
    curve = learn(directory, load_config(directory.config), out=tmp_path / "students", observer=notes)
    assert [point.images for point in curve.points] == [120]
    assert BEGINS_ANEW in notes.texts


def test_the_first_student_is_fresh_and_the_others_go_on(finished):
    directory, spec = RunDirectory(finished.directory), read_inputs(finished.config).spec
    students = [directory.artefact(number, "train").read_bytes() for number in range(4)]
    fresh = build_model("small-cnn", (1, 16, 16), 10, seed=3, mean=spec.mean, std=spec.std)
    assert students[0] == model_bytes(fresh, spec.card)
    for number in (1, 2, 3):
        part = directory.read_labelled(number, 10)
        targets = F.one_hot(part.answers.labels, 10).float()
        again, _ = fit(with_start(spec, students[number - 1]), part.images, targets, number, final=number == 3)
        assert students[number] == again


def test_a_round_is_made_from_the_student_before_it(finished):
    directory = RunDirectory(finished.directory)
    pool = read_inputs(finished.config).pool
    student = load_student(directory.artefact(1, "train")).requires_grad_(False)
    again = pool.make(basis(2, student=student))
    assert directory.phases(2)["make"]["losses"] == again.facts["losses"]
    part = directory.read_labelled(2, 10)
    assert torch.equal(pool.made(2, again.tensors).render(torch.from_numpy(part.ids)), part.images)


def test_the_report_looks_ahead_from_students_that_learnt_one_round_after_the_other(finished):
    curve = curve_of(RunDirectory(finished.directory), finished, 100)
    assert [count for count, _ in curve.points] == [40, 80, 120]
    assert [one.count for one in curve.expected] == [240, 480]
    assert curve.said[0].startswith("With 120 more answers")
    short = curve_of(RunDirectory(finished.directory), replace(finished, history=finished.history[:3]), 100)
    assert short.said == [
        "Not known: a curve needs 3 points, and this run has 2. A run with more rounds would show it."
    ]
    early = finished.config.model_copy(update={"student": finished.config.student.model_copy(update={"early": 0.5})})
    (said,) = curve_of(RunDirectory(finished.directory), replace(finished, config=early), 100).said
    assert "student.early is 0.5" in said and said.endswith("A run with student.early = 1 would show it.")


@pytest.mark.storm
@pytest.mark.parametrize("when", [8, *(pytest.param(k, marks=pytest.mark.storm) for k in (6, 12))])
def test_a_run_that_was_stopped_ends_with_the_same_bits(when, finished, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(finished.config, RunDirectory(tmp_path / "part"), local=True, observer=StopAtPhase(when))
    part = resume(RunDirectory(tmp_path / "part"), local=True)
    assert part.receipt.queries == 120
    for name in ("rounds/003/pool.safetensors", "rounds/003/candidates.parquet", "student.safetensors"):
        assert (part.directory / name).read_bytes() == (finished.directory / name).read_bytes(), name


@pytest.mark.storm
@pytest.mark.xdist_group("ray")
def test_ray_chooses_and_trains_the_same(make_config, ray_local, tmp_path):
    changes = {
        "select": {"strategy": "margin", "first": 0, "rounds": 2},
        "student__replay": "all",
        "budget__queries": 60,
    }
    config = make_config(**(IDEAL | changes))
    here = run(config, RunDirectory(tmp_path / "here"), local=True)
    there = run(on_workers(config), RunDirectory(tmp_path / "there"))
    for name in ("rounds/001/candidates.parquet", "rounds/002/candidates.parquet", "student.safetensors"):
        assert (here.directory / name).read_bytes() == (there.directory / name).read_bytes(), name


def test_replay_trains_on_all_with_stored_answers(make_config, tmp_path):
    config = make_config(**ideal(student__replay="all", select__first=20, budget__queries=140))
    done = run(config, RunDirectory(tmp_path / "run"), local=True)
    assert [m.images for m in done.history] == [20, 60, 100, 140] and done.receipt.queries == 140


def test_labelled_images_are_in_every_round_without_replay(make_config, tmp_path):
    labelled = {"source": "digits", "rows": "0:30", "size": 16}
    done = run(make_config(**ideal(labelled=labelled)), RunDirectory(tmp_path / "run"), local=True)
    assert [m.images for m in done.history] == [30, 70, 70, 70]
    assert [m.relative_entropy for m in done.history] == entropies(done)


def test_a_choice_by_class_has_ten_times_as_many_to_choose_from(make_config):
    for select, candidates in (
        ({}, 40),
        ({"select__balance": 8}, 400),
        ({"select__strategy": "margin"}, 400),
    ):
        assert len(read_inputs(make_config(**ideal(**select))).pool) == candidates, select


def test_a_round_that_finds_too_few_asks_fewer(finished, make_config, tmp_path):
    pool, inputs = finished.config.pool, read_inputs(finished.config)
    fresh = build_model("small-cnn", (1, 16, 16), 10, seed=3, mean=inputs.spec.mean, std=inputs.spec.std)
    every = pool.model_copy(update={"candidates": 1024}).build(inputs.images.images, 3)
    every = every.made(1, every.make(basis(student=fresh.eval().requires_grad_(False))).tensors)
    confidence = fresh(every.render(torch.arange(1024))).softmax(dim=1).amax(dim=1)
    below = float(confidence.sort().values[7]) + 1e-6
    config = make_config(**ideal(pool__ask_below=below))
    notes = Notes()
    with open_run(config, RunDirectory(tmp_path / "run"), local=True, observer=notes) as rounds:
        while not RunDirectory(tmp_path / "run").artefact(1, "evaluate").exists():
            rounds.step()
        assert rounds.history()[-1].bought == 8
    assert any(note.startswith("pool.ask_below: round 1 found 8 of 40 candidates") for note in notes.texts)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pool": "mixup"}, r"select\.first: 0 leaves nothing to train on"),
        ({"select__rounds": 0}, r"select\.first: 0 leaves nothing to train on"),
        ({"student__start": "new"}, r"student: replay is none, and a student that starts anew"),
        ({"student__recipe": "auto"}, r"student: start is last, and recipe is auto"),
        ({"student__augment": "auto"}, r"student: start is last, and augment is auto"),
        ({"student__unpaid": {}}, r"student: start is last, and unpaid is set"),
        ({"pool": "auto", "select__first": 10}, r"student\.start is last, and pool\.kind auto compares"),
        ({"pool": {"kind": "mixture", "of": ["lines", "generator"]}}, r"pool\.of\.1: .* name generator alone"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, words, make_config):
    with pytest.raises(ConfigError, match=words):
        make_config(**ideal(**changes))


def test_a_plan_times_the_first_steps_of_a_long_training():
    """The clock goes on by 2 s each time one looks."""
    for probe_s, steps, seconds in ((5.0, 3, 40.0), (float("inf"), 20, 2 * 20.0)):
        done: list[int] = []
        student, clock = student_of(), itertools.count(0, 2).__next__
        student.register_forward_hook(lambda *_, done=done: done.append(1))
        assert seconds_of_making(pool_of(steps=20), basis(student=student), probe_s, clock) == seconds
        looked_first, looked_last = 1, steps == 20  # how many classes there are, and the loss after all steps
        assert len(done) == looked_first + steps + looked_last


def test_a_plan_knows_queries_and_time_and_a_preview_says_what_it_shows(config_file, tmp_path):
    path = config_file(**ideal())
    plan = command("plan", path)
    assert plan.returncode == 0, plan.stderr
    text = " ".join(plan.stdout.split())
    assert "120 = 0 for the images + 3 x 40" in text and "each of 3 rounds makes its own candidates" in text
    assert "each round makes 40 candidates" in text and "auto makes 40 a round" in text
    assert "6 steps of 40 images" in text
    assert "evenly" not in text
    uneven = " ".join(command("plan", path, "pool.batch=23").stdout.split())
    assert "pool.batch: 23 images do not divide evenly among 10 classes; the first 3 have one more each" in uneven
    shown = command("preview", path, "--out", tmp_path / "sheet.png")
    assert shown.returncode == 0 and "40 candidates from before there is a student" in " ".join(shown.stdout.split())
