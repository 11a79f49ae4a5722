"""RAD's m: what a sample says of it, what it costs, and the semi-supervised start it comes from."""

import re
import shutil
from math import log, sqrt

import numpy as np
import pytest
import torch
import yaml
from conftest import Notes, command, digits_config

from kdray.config.load import load_config, parse_config
from kdray.errors import ConfigError, ImageSetError
from kdray.images.base import ImageSet
from kdray.ledger.receipt import lines
from kdray.ledger.store import Ledger
from kdray.models.checkpoint import load_student
from kdray.runs.directory import RunDirectory
from kdray.runs.inputs import read_inputs
from kdray.runs.plan import make_plan
from kdray.runs.pool_schedule import read_pool
from kdray.runs.result import read_result
from kdray.runs.run import resume, run
from kdray.runs.tables import write_image_set
from kdray.select.rad.mistakes import Mistakes, deviation, estimate_share, foreign_classes
from kdray.teachers.recipe import train_teacher
from kdray.utils.files import read_json

# Pure


def test_m_is_a_number_or_a_share_of_those_that_are_left():
    assert Mistakes(count=7).of(100) == Mistakes(count=7).of(50) == 7
    assert Mistakes(share=0.1).of(50) == 5
    assert Mistakes().of(200) == 10


def test_lemma_5_by_hand():
    surely = log(4 / 0.05)
    want = surely * (1 / 1000 + 1 / 100) + sqrt(2 * 0.2 * 0.8 * surely) * (1 / sqrt(1000) + 1 / sqrt(100))
    assert deviation(0.2, 1000, 100) == pytest.approx(want)
    told = estimate_share(np.arange(100) < 20, 1000, "validation")
    assert (told.answered, told.mistakes, told.share) == (100, 20, 0.2)
    assert (told.low, told.high) == (0.0, pytest.approx(0.2 + want))
    assert deviation(0.0, 10**6, 10**6) == pytest.approx(2e-6 * surely)


def test_the_interval_of_lemma_5_holds_what_is_true():
    rng = np.random.default_rng(0)
    for _ in range(200):
        wrong = rng.random(2000) < 0.1
        told = estimate_share(rng.choice(wrong, 200, replace=False), 2000, "validation")
        assert told.low <= wrong.mean() <= told.high


def test_an_estimate_from_nothing_is_the_usual_share():
    told = estimate_share(np.empty(0, bool), 100, "sources")
    assert (told.share, told.low, told.high) == (0.05, 0.0, 1.0)


def test_a_mistake_is_a_class_of_neither_image_and_unknown_images_say_nothing():
    labels = np.array([1, 2, 3, 3, 4, 0])
    first, second = np.array([1, 1, 1, -1, 4, 2]), np.array([5, 2, 2, 2, -1, 2])
    assert foreign_classes(labels, first, second).tolist() == [False, False, True, True]


# In a run


def spent(path) -> dict:
    """(purpose, round) -> charged."""
    ledger = Ledger(path)
    try:
        return {(line.purpose, line.round): line.charged for line in lines(ledger)}
    finally:
        ledger.close()


@pytest.fixture(scope="module")
def robust(tmp_path_factory, teacher_weights):
    config = parse_config(
        digits_config(
            teacher_weights,
            select__strategy="rad-pairs",
            select__m="estimate",
            select__estimate_queries=20,
            pool__pairs=300,
        )
    )
    return run(config, RunDirectory(tmp_path_factory.mktemp("robust") / "run"), local=True)


def test_queries_for_the_estimate_are_paid_by_the_budget_and_shown_apart(robust):
    charged = spent(robust.directory / "ledger.sqlite")
    assert charged["training", 0] == 40 and charged["estimate", 1] == 20
    assert (charged["training", 1], charged["training", 2]) == (40, 60)  # round 1 has so many fewer
    receipt = robust.receipt
    assert (receipt.queries, receipt.estimate_queries, receipt.budget) == (140, 20, 160)
    assert [m.queries for m in robust.history] == [40, 80, 140]
    assert [m.paid for m in robust.history] == [40, 100, 160]


def test_what_was_bought_for_the_estimate_is_trained_on_and_belongs_to_the_user(robust):
    assert [m.images for m in robust.history] == [40, 100, 160]
    parts = robust.labelled
    assert [len(part) for part in parts] == [40, 20, 40, 60]
    ids = np.concatenate([part.ids for part in parts[1:]])
    assert len(set((ids // 3).tolist())) == 120  # nor is a pair bought twice
    names = sorted(path.name for path in (robust.directory / "labelled").iterdir())
    assert names == ["round-000.parquet", "round-001-sample.parquet", "round-001.parquet", "round-002.parquet"]


def test_an_estimate_that_another_run_has_paid_for_counts_as_reused(robust, tmp_path):
    section = robust.config.ledger.model_copy(update={"path": str(robust.directory / "ledger.sqlite")})
    config = robust.config.model_copy(update={"ledger": section})
    again = run(config, RunDirectory(tmp_path / "run"), local=True)
    assert [m.reused for m in again.history] == [40, 60, 60] and [m.paid for m in again.history] == [0, 0, 0]
    assert [m.paid + sum(e.reused for e in again.history[: m.round + 1]) for m in again.history] == [40, 100, 160]


def test_the_estimate_is_what_the_answers_say(robust):
    directory = RunDirectory(robust.directory)
    told = read_json(directory.artefact(1, "estimate"))
    pool = read_pool(robust.config).pool
    sample, images = directory.read_labelled(1, 10, sample=True), directory.read_labelled(0, 10)
    classes = dict(zip(images.ids.tolist(), images.answers.labels.tolist(), strict=True))
    i, j = pool.pair(torch.from_numpy(sample.ids // 3))
    wrong = [
        said not in (classes[a], classes[b])
        for said, a, b in zip(sample.answers.labels.tolist(), i.tolist(), j.tolist(), strict=True)
    ]
    assert told["mistakes"] == sum(wrong) and told["answered"] == 20 and told["how"] == "sources"
    for number, left in ((1, 280), (2, 240)):
        search = robust.history[number].search
        assert search["rad_n"] == left and search["rad_m"] == pytest.approx(told["share"] * left)
        assert search["rad_w"] == pytest.approx(1 - told["share"])
    assert robust.history[1].estimate == told and robust.history[2].estimate == {}


@pytest.mark.parametrize("first", [12, 4])
def test_only_mixes_of_known_images_are_asked_about_for_an_estimate(first, make_config, tmp_path):
    rad = {"strategy": "rad-pairs", "m": "estimate", "estimate_queries": 20, "first": first, "rounds": 2}
    heard = Notes()
    result = run(make_config(select=rad), RunDirectory(tmp_path / "r"), local=True, observer=heard)
    known = min(20, first * (first - 1) // 2)  # of four images there are six pairs
    assert result.history[1].estimate["answered"] == known == result.receipt.estimate_queries
    told = [text for text in heard.texts if "queries are spent" in text]
    more = "no more pairs were found of whose two images both classes are known"
    assert told == ([] if first == 12 else [f"m: 6 of 20 queries are spent, as {more}"])


def test_a_plan_trains_on_what_the_estimate_buys(robust):
    plan = make_plan(robust.config, probe_s=0.01)
    assert [training.steps for training in plan.trainings] == [m.training["steps"] for m in robust.history]


def test_the_page_says_what_rad_went_by(robust):
    from kdray.report.page import write_report

    html = write_report([RunDirectory(robust.directory)]).read_text()
    assert "Round 1: m estimated from 20 answers on random mixes" in html
    assert "Round 2: RAD with m = " in html
    assert "to estimate m, counted apart, paid by the same budget" in html


def test_the_page_counts_all_that_the_budget_paid(tmp_path, teacher_weights):
    """The estimate's queries too, in the tiles and the rounds; and says so where a round chose nothing."""
    from kdray.report.page import write_report

    data = semi(teacher_weights, budget__price_per_query=0.5)
    result = run(parse_config(data), RunDirectory(tmp_path / "r"), local=True)
    receipt = result.receipt
    assert (receipt.paid, receipt.paid_cost) == (120, 60.0)
    html = write_report([RunDirectory(result.directory)]).read_text()
    assert re.findall(r"<b>(.*?)</b><span>(?:of 120 queries of the budget|price of these queries)", html) == [
        "120",
        "60.00 USD",
    ]
    lines = re.findall(r'<tr><th scope="row">\d+</th>.*?</tr>', html)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in lines]
    assert [row[:4] for row in rows if len(row) == 12] == [
        ["0", "60", "0", "0"],
        ["1", "95", "60", "60"],
        ["2", "155", "120", "60"],
    ]
    assert html.count("Nothing was chosen in this round: the student began with the labelled images alone.") == 1
    assert html.count('alt="Queried image') == 16


@pytest.mark.storm
def test_a_run_killed_between_its_estimate_and_what_follows_ends_with_the_same_bits(robust, tmp_path):
    """Whatever of round 1 is already on disk."""
    whole = RunDirectory(robust.directory)
    for number, missing in enumerate((("estimate", "sample"), ("estimate",), ("choose",), ("query",))):
        path = tmp_path / str(number)
        shutil.copytree(robust.directory, path)
        partial = RunDirectory(path)
        phases = ["estimate", "choose", "query", "train", "evaluate"]
        for phase in phases[phases.index(missing[0]) :]:
            partial.artefact(1, phase).unlink()
        if "sample" in missing:
            (partial.round(1) / "sample.parquet").unlink()
        shutil.rmtree(partial.round(2))
        again = resume(partial, local=True)
        assert again.receipt.queries + again.receipt.estimate_queries == 160
        for later in (1, 2):
            ours, theirs = (d.artefact(later, "train").read_bytes() for d in (partial, whole))
            assert ours == theirs


def test_m_that_is_given_costs_nothing(tmp_path, make_config):
    result = run(
        make_config(select__strategy="rad-pairs", select__m=0.2, select__w=0.5),
        RunDirectory(tmp_path / "r"),
        local=True,
    )
    assert result.receipt.estimate_queries == 0 and result.receipt.queries == 160
    assert result.history[1].search["rad_m"] == pytest.approx(0.2 * 780) and result.history[1].search["rad_w"] == 0.5
    assert not RunDirectory(tmp_path / "r").artefact(1, "estimate").exists()


def test_a_shared_ledgers_cap_holds_for_the_estimate_too(tmp_path, make_config):
    shared = tmp_path / "all.sqlite"
    config = make_config(
        select__strategy="rad-pairs",
        select__m="estimate",
        select__estimate_queries=30,
        ledger__path=str(shared),
        ledger__queries=55,
    )
    result = run(config, RunDirectory(tmp_path / "r"), local=True)
    charged = spent(shared)
    assert sum(count for (purpose, _), count in charged.items() if purpose != "evaluation") == 55
    assert charged["estimate", 1] == 15 and result.receipt.estimate_queries == 15


# The semi-supervised start (RAD, Algorithm 1)


def semi(weights, **changes) -> dict:
    data = digits_config(
        weights,
        images={"source": "digits", "rows": "700:1300", "size": 16},
        labelled={"source": "digits", "rows": "0:60", "size": 16},
        validation={"source": "digits", "rows": "60:200", "size": 16},
        budget__queries=120,
        select__strategy="rad",
        select__m="estimate",
        select__estimate_queries=25,
        student__loss="kl",
    )
    data["pool"] = {"kind": "images"}
    for key, value in changes.items():
        section, _, field = key.partition("__")
        if field:
            data[section] = (data.get(section) or {}) | {field: value}
        elif value is None:
            data.pop(section, None)
        else:
            data[section] = value
    return data


def test_labelled_images_are_trained_on_for_nothing_and_the_teachers_error_is_measured(tmp_path, teacher_weights):
    result = run(parse_config(semi(teacher_weights)), RunDirectory(tmp_path / "r"), local=True)
    assert [m.queries for m in result.history] == [0, 35, 95]
    assert [m.images for m in result.history] == [60, 95, 155]  # the validation images are not among them
    assert result.receipt.queries == 95 and result.receipt.estimate_queries == 25
    told = result.history[1].estimate
    assert told["how"] == "validation" and told["answered"] == 25
    inputs = read_inputs(result.config)
    first, second = (RunDirectory(tmp_path / "r").read_candidates(number) for number in (1, 2))
    assert set(first.ids.tolist()).isdisjoint(second.ids.tolist())
    assert result.history[1].search["rad_n"] == 600 and result.history[2].search["rad_n"] == 565
    bought = RunDirectory(tmp_path / "r").read_labelled(1, 10)
    assert torch.equal(bought.images, inputs.images.images[torch.from_numpy(bought.ids)])
    assert read_result(RunDirectory(tmp_path / "r")).history == result.history


def test_round_0_of_real_images_without_labels_asks_about_some_of_them(tmp_path, teacher_weights):
    config = parse_config(
        semi(teacher_weights, labelled=None, select__strategy="margin", select__m=0.05, select__estimate_queries="auto")
    )
    result = run(config, RunDirectory(tmp_path / "r"), local=True)
    assert [m.queries for m in result.history] == [40, 80, 120]
    ids = np.concatenate([RunDirectory(tmp_path / "r").read_candidates(number).ids for number in range(3)])
    assert len(set(ids.tolist())) == 120


def test_a_mixup_run_with_labelled_images_trains_on_them_too(tmp_path, teacher_weights):
    data = digits_config(teacher_weights)
    data["labelled"] = {"source": "digits", "rows": "600:650", "size": 16}
    result = run(parse_config(data), RunDirectory(tmp_path / "r"), local=True)
    assert [m.images for m in result.history] == [90, 150, 210] and result.receipt.queries == 160


def test_pairs_of_images_nobody_asked_about_can_be_bought(tmp_path, teacher_weights):
    """RAD's labelled set with a mixup pool: round 0 need not ask about the images that are mixed."""
    changes = {"pool": {"kind": "mixup", "lambdas": [0.25, 0.5, 0.75]}, "images__count": 50, "select__first": 0}
    for strategy in ("unixkd", "coreset"):
        config = semi(teacher_weights, **changes, select__strategy=strategy)
        config["select"] |= {"m": 0.05, "estimate_queries": "auto"}
        result = run(parse_config(config), RunDirectory(tmp_path / strategy), local=True)
        assert [m.queries for m in result.history] == [0, 60, 120]
    few = semi(teacher_weights, **changes | {"select__first": 7}, select__strategy="random")
    few["select"] |= {"m": 0.05, "estimate_queries": "auto"}
    result = run(parse_config(few), RunDirectory(tmp_path / "few"), local=True)
    assert [m.queries for m in result.history] == [7, 64, 120]
    inputs, part = read_inputs(result.config), result.labelled[0]
    assert torch.equal(part.images, inputs.images.images[torch.from_numpy(part.ids)]) and len(part) == 7


def test_the_teacher_is_trained_on_the_labelled_set_where_its_recipe_names_no_images(tmp_path, teacher_weights):
    data = semi(tmp_path / "weak.safetensors")
    data["teacher"]["train"] = {"epochs": 3}
    weak = read_inputs(parse_config(data))
    again = parse_config(data | {"teacher": data["teacher"] | {"weights": str(tmp_path / "again.safetensors")}})
    train_teacher(again.teacher, labelled=weak.labelled)
    assert (tmp_path / "weak.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_teacher_train_takes_a_count(tmp_path):
    data = digits_config(tmp_path / "weak.safetensors")
    data["teacher"]["train"] = {"images": {"source": "digits", "rows": "0:600", "size": 16}, "epochs": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
    answer = command("teacher", "train", tmp_path / "config.yaml", "--count", "30")
    assert answer.returncode == 0, answer.stderr
    few = load_student(tmp_path / "weak.safetensors")
    config = load_config(
        tmp_path / "config.yaml", ["teacher.train.images.count=30", f"teacher.weights={tmp_path / 'same.safetensors'}"]
    )
    train_teacher(config.teacher)
    same = load_student(tmp_path / "same.safetensors")
    for name, value in few.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])


# What cannot be


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"validation": None},
            "select.m: where a teacher errs on real images cannot be told without knowing what they show",
        ),
        ({"select__m": 600, "select__estimate_queries": "auto"}, "select.m: the teacher cannot err on 600 of 540"),
        ({"select__estimate_queries": 60}, "select.estimate_queries: 60 queries for the estimate of m leave nothing"),
        ({"validation__count": 10}, "select.estimate_queries: 25 labelled images wanted .* validation has 10"),
        ({"budget__queries": 700}, "budget.queries: 675 candidates are to be chosen"),
        ({"select__strategy": "unixkd"}, "select.strategy: unixkd buys mixes of images"),
        ({"select__first": 0, "labelled": None}, "select.first: 0 leaves nothing to train on in round 0"),
        (
            {
                "pool": {"kind": "mixup", "pairs": 20},
                "validation": None,
                "images__count": 30,
                "select__estimate_queries": 25,
                "select__rounds": 1,
            },
            "select.estimate_queries: 25 pairs wanted for the estimate of m, but there are 20",
        ),
        (
            {"budget__queries": 626},
            "601 candidates are to be chosen after round 0, but the pool over 600 images has only 600",
        ),
        ({"select__first": 601}, "select.first: 601 images wanted in round 0, but there are 600"),
        (
            {"select__first": 0, "pool": {"kind": "mixup"}, "validation": None, "select__strategy": "rad-pairs"},
            "select.m: mistakes on mixes show by what the teacher says of their two images",
        ),
        ({"labelled": {"source": "digits", "rows": "0:60", "size": 8}}, "labelled: its images have shape"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_paid(teacher_weights, changes, message):
    with pytest.raises((ConfigError, ImageSetError), match=message):
        read_inputs(parse_config(semi(teacher_weights, **changes)))


def test_gains_that_no_memory_holds_are_not_held(teacher_weights):
    given = ImageSet(images=torch.zeros(20_000, 1, 16, 16, dtype=torch.uint8))
    data = semi(teacher_weights, pool={"kind": "mixup", "lambdas": {"min": 0.0001, "max": 0.9999, "step": 0.0001}})
    data["budget"]["queries"] = 20_100
    config = parse_config(data)
    pool = read_pool(config, given).pool
    assert len(pool) > 10**12 and config.select.driver_bytes(pool, 100) < 100 << 20


def test_a_labelled_set_of_other_classes_is_refused(tmp_path, teacher_weights):
    images = torch.zeros(12, 1, 16, 16, dtype=torch.uint8)
    write_image_set(tmp_path / "a.parquet", ImageSet(images=images, labels=torch.arange(12)))
    with pytest.raises(ImageSetError, match="labelled: label 11 found, but the teacher has 10 classes"):
        read_inputs(
            parse_config(semi(teacher_weights, labelled={"source": "parquet", "path": str(tmp_path / "a.parquet")}))
        )
    names = ["one", "zero", *map(str, range(2, 10))]
    data = semi(teacher_weights)
    data["teacher"]["classes"] = names
    with pytest.raises(ImageSetError, match="labelled: the teacher has no class '0', '1'; it has 'one', 'zero'"):
        read_inputs(parse_config(data))
