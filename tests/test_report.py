"""The report of a run: its answers, its figures, how it reads in a browser, and how large it may become."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from browser import WINDOWS, looked_at
from conftest import command, copy_run, digits_config, examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.special import expit, logit
from test_display import metrics

from kdray.config.load import parse_config
from kdray.images import read_images
from kdray.metrics.calibration import reliability
from kdray.metrics.extrapolation import extrapolate
from kdray.models.predict import predict
from kdray.report.curve import curve_of
from kdray.report.failures import Failures, read_failures
from kdray.report.figures import matrix_figure, reliability_figure, spread, time_figure
from kdray.report.page import how, write_report
from kdray.report.pictures import picture
from kdray.report.trust import reasons, recall_words
from kdray.runs.directory import RunDirectory
from kdray.runs.learning import learn
from kdray.runs.result import read_result
from kdray.runs.run import run
from kdray.select.strategies.random import Random
from kdray.utils.seeds import numpy_generator

QUESTIONS = [
    "How good is it?", "What did it cost?", "Would more queries help?", "Where does it fail?",
    "What was asked, and why?", "Can I trust the numbers?", "Receipt", "Config",
]  # fmt: skip
MOST = 2_000_000
pytestmark = pytest.mark.xdist_group("browser")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher_weights):
    """A finished run, which tests read and copy, never change."""
    directory = RunDirectory(tmp_path_factory.mktemp("report") / "run")
    budget = {"queries": 160, "price_per_query": 0.05, "currency": "EUR"}
    return run(parse_config(digits_config(teacher_weights, budget=budget)), directory, local=True)


def of(result):
    return RunDirectory(result.directory)


# The learning curve


def power(counts, a, b, c):
    return [1 - c - a * count**-b for count in counts]


def test_a_curve_without_noise_goes_on_as_it_is():
    counts = [100, 200, 400, 800, 1600, 3200]
    for a, b, c in ((2.0, 0.5, 0.0), (1.0, 0.3, 0.05), (4.0, 0.8, 0.2)):
        first, last = extrapolate(counts, power(counts, a, b, c), 1_000_000, [6400, 25_600])
        assert first.value == pytest.approx(power([6400], a, b, c)[0], abs=0.006)
        assert last.low <= power([25_600], a, b, c)[0] <= last.high
        assert last.high - last.low > first.high - first.low, "further ahead less is known"


@pytest.mark.storm
def test_the_intervals_hold_what_they_say():
    draw, held = numpy_generator(0, "curves"), 0
    for _ in range(80):
        b, floor, height, noise = draw.uniform(0.2, 0.9), draw.uniform(0, 0.6), draw.uniform(0.02, 0.4), 0.08
        counts = np.array([125, 250, 500, 1000, 4000])
        error = height * (floor + (1 - floor) * (counts / 1000) ** -b)
        seen = expit(logit(np.minimum(error, 0.9)) + noise * draw.standard_normal(5))
        (found,) = extrapolate(counts[:4].tolist(), (1 - seen[:4]).tolist(), 100_000, [4000])
        held += found.low <= 1 - seen[4] <= found.high
    assert held >= 72, "95 % of the intervals, but for chance"


@pytest.mark.parametrize(
    ("counts", "values", "tested", "low", "high"),
    [
        ([250, 500, 1000], [0.85, 0.93, 0.99], 500, 0.97, 0.990),
        ([250, 500, 1000], [0.90, 0.94, 0.98], 100, 0.93, 0.972),
    ],
)
def test_a_last_point_that_few_test_images_show_too_good_is_not_believed(counts, values, tested, low, high):
    (found,) = extrapolate(counts, values, tested, [2000])
    assert found.low < low and found.value < high, found


@examples(30)
@given(
    st.lists(st.integers(1, 100_000), min_size=3, max_size=6, unique=True).map(sorted),
    st.lists(st.floats(0, 1), min_size=6, max_size=6),
    st.integers(1, 100_000),
)
def test_whatever_was_measured_an_outlook_is_a_share_in_its_interval(counts, values, tested):
    near, far = extrapolate(counts, values[: len(counts)], tested, [counts[-1], 4 * counts[-1]])
    for one in (near, far):
        assert 0 <= one.low <= one.value <= one.high <= 1 and 0 <= one.gain_low <= one.gain <= one.gain_high <= 1
    assert near.gain == pytest.approx(0, abs=1e-12) and far.gain >= near.gain, "more answers never harm"
    assert extrapolate(counts, values[: len(counts)], tested, [4 * counts[-1]])[0].value == pytest.approx(
        far.value, abs=0.02
    )


@pytest.mark.parametrize(
    ("counts", "values", "tested", "wanted", "said"),
    [
        ([100, 200], [0.1, 0.2], 10, [400], "2 counts and 2 values; give as many of both, 3 at least"),
        ([100, 200, 300], [0.1, 0.2], 10, [400], "3 counts and 2 values"),
        ([100, 200, 200], [0.1, 0.2, 0.3], 10, [400], "counts must be positive and rise"),
        ([0, 200, 300], [0.1, 0.2, 0.3], 10, [400], "counts must be positive and rise"),
        ([100, 200, 300], [0.1, 0.2, 1.3], 10, [400], "values must be shares"),
        ([100, 200, 300], [0.1, 0.2, float("nan")], 10, [400], "values must be shares"),
        ([100, 200, 300], [0.1, 0.2, 0.3], 0, [400], "tested is 0"),
        ([100, 200, 300], [0.1, 0.2, 0.3], 10, [200], "wanted must be 300 at least"),
    ],
)
def test_what_is_no_curve_is_refused(counts, values, tested, wanted, said):
    with pytest.raises(ValueError, match=said):
        extrapolate(counts, values, tested, wanted)


def test_more_queries_have_a_promise_and_a_price(finished):
    curve = curve_of(of(finished), finished, 100)
    assert curve.points == [(m.images, m.student_accuracy) for m in finished.history]
    assert [one.count for one in curve.expected] == [320, 640]
    assert curve.said[0].startswith("With 160 more answers, for 8.00 EUR, a student would have an accuracy of about ")
    assert curve.said[1].startswith("With 480 more answers, for 24.00 EUR, ")


def test_rounds_that_were_trained_shorter_promise_nothing_but_students_of_fewer_answers_do(finished, tmp_path):
    directory = RunDirectory(copy_run(finished.directory, tmp_path / "run"))
    config = yaml.safe_load(directory.config.read_text())
    config["student"]["early"] = 0.5
    directory.config.write_text(yaml.safe_dump(config))
    cut = read_result(directory)
    curve = curve_of(directory, cut, 100)
    assert not curve.expected and "student.early is 0.5" in curve.said[0]
    assert "<td>measured</td>" not in write_report([directory]).read_text(), "no column of intervals that says nothing"
    assert curve.said[1] == f"kdray train {tmp_path}/run --first 20,40,80 && kdray report {tmp_path}/run"
    assert command(*curve.said[1].split(" && ")[0].split()[1:]).returncode == 0, "the command that it names works"
    trained = curve_of(directory, cut, 100)
    assert [count for count, _ in trained.points] == [20, 40, 80, 160] and len(trained.expected) == 2
    assert any("3 students" in line for line in trained.said)
    assert write_report([directory]).read_text().count("<td>measured</td>") == 4


def test_students_of_another_recipe_are_no_points_of_the_curve(finished, tmp_path):
    directory = RunDirectory(copy_run(finished.directory, tmp_path / "run"))
    other = finished.config.model_copy(update={"student": finished.config.student.model_copy(update={"epochs": 1})})
    learn(directory, other, first=[20, 40, 80])
    (directory.path / "students-2").mkdir()  # one that is being written
    result = read_result(directory)
    assert curve_of(directory, result, 100).points == [(m.images, m.student_accuracy) for m in finished.history]


def test_too_few_points_and_unmeasured_students_are_said(finished):
    short = curve_of(of(finished), _with_history(finished, finished.history[:2]), 100)
    assert "a curve needs 3 points, and this run has 2" in short.said[0] and "--first 12,25,50" in short.said[1]
    assert "cannot be read again" in curve_of(of(finished), finished, None).said[0]
    bare = [metrics(round=0, student_accuracy=None, agreement=None)]
    assert "was measured" in curve_of(of(finished), _with_history(finished, bare), 100).said[0]


def test_a_student_that_was_taught_nothing_is_no_point(finished):
    first, *rest = finished.history
    history = [metrics(round=0, images=0, student_accuracy=0.1), first, *rest]
    assert [count for count, _ in curve_of(of(finished), _with_history(finished, history), 100).points] == [
        40,
        100,
        160,
    ]


def _with_history(result, history):
    from dataclasses import replace

    return replace(result, history=history)


# Where it fails


def test_failures_are_those_of_scikit_learn_and_show_the_very_images(finished):
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    found = read_failures(of(finished), finished.student)
    assert isinstance(found, Failures)
    test = read_images(finished.config.test, generator=numpy_generator(0, "x"), with_labels=True)
    probs = predict(finished.student, test.images)
    right, called = test.true_labels, probs.argmax(dim=1)
    assert np.array_equal(found.matrix.numpy(), confusion_matrix(right, called, labels=range(10)))
    assert (found.count, found.compared, found.against) == (100, 100, "true labels")
    assert found.wrong == int((right != called).sum()) > 0
    f1 = precision_recall_fscore_support(right, called, labels=range(10), zero_division=0)[2]
    assert [one.f1 for _, one in found.worst] == pytest.approx(sorted(f1)), "the worst class first"
    counts = [one.count for one in found.confusions]
    assert counts == sorted(counts, reverse=True)
    for one in found.confusions:
        sure = [mistake.confidence for mistake in one.mistakes]
        assert sure == sorted(sure, reverse=True) and len(one.mistakes) == min(one.count, 6)
        for mistake in one.mistakes:
            assert (str(int(right[mistake.row])), str(int(called[mistake.row]))) == (one.right, one.called)
            assert mistake.confidence == pytest.approx(float(probs[mistake.row].max()), abs=1e-5)
            pixels = Image.open(io.BytesIO(base64.b64decode(mistake.picture.split(",")[1])))
            assert np.array_equal(np.asarray(pixels), test.images[mistake.row, 0].numpy())
    assert found.asked == found.wrong, "the teacher was asked about all test images"


def test_test_images_that_are_gone_are_no_obstacle(finished, tmp_path):
    directory = RunDirectory(copy_run(finished.directory, tmp_path / "run"))
    config = yaml.safe_load(directory.config.read_text())
    config["test"] = {"source": "folder", "path": str(tmp_path / "gone"), "size": 16, "colour": "grey"}
    directory.config.write_text(yaml.safe_dump(config))
    page = write_report([directory]).read_text()
    assert "Not known: test" in page and str(tmp_path / "gone") in page
    assert all(f">{question}</h2>" in page for question in QUESTIONS)


# The parts


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 32, 32), (1, 28, 28), (3, 224, 224), (3, 96, 96), (5, 8, 300), (2, 1, 9)]
)
def test_a_picture_is_small_and_lossless_where_it_can_be(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    head, data = picture(image).split(",")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert len(data) < 16_000 and max(shown.shape[:2]) <= max(96, *shape[1:]) and head.startswith("data:image/")
    if head == "data:image/png;base64":
        assert np.array_equal(
            shown if shown.ndim == 2 else shown.transpose(2, 0, 1), image[0] if shape[0] != 3 else image
        )
    else:
        assert max(shown.shape[:2]) <= 96


@given(st.integers(1, 500), st.integers(2, 80))
def test_a_spread_has_both_ends_and_no_more_than_wanted(count, most):
    rows = spread(count, most)
    assert rows == sorted(set(rows)) and len(rows) == min(count, most) and rows[0] == 0 and rows[-1] == count - 1


def test_every_phase_has_its_share_of_the_time():
    seconds = {"make": 2.0, "compare": 1.0, "estimate": 1.0, "choose": 1.0, "query": 1.0, "train": 1.0, "evaluate": 1.0}
    figure = time_figure([metrics(round=0, seconds=seconds)])
    assert all(f">{phase}</text>" in figure for phase in seconds)
    assert ">make</text>" not in time_figure([metrics(round=0, seconds={"train": 1.0})])
    assert len(time_figure([metrics(round=k, seconds=seconds) for k in range(1000)])) < 150_000


def test_a_matrix_shows_the_mistakes_alone():
    matrix = torch.tensor([[90, 1, 0], [2, 80, 3], [0, 0, 70]])
    figure = matrix_figure(matrix, ["cat", "<dog>", "$\\frac"])
    assert [f">{text}</text>" in figure for text in ("1", "2", "3", "90", "80", "70")] == [True] * 3 + [False] * 3
    assert "&lt;dog&gt;" in figure
    assert matrix_figure(torch.tensor([[9, 1], [1, 9]]), ["a", "b"]) is None, "two are told in words"
    assert matrix_figure(torch.full((21, 21), 1), [str(k) for k in range(21)]) is None


def test_reliability_of_a_single_bin_is_drawn():
    found = reliability(torch.tensor([[0.1, 0.9]]).log(), torch.tensor([1]))
    assert "images, by confidence" in reliability_figure(found)


@pytest.mark.parametrize(
    ("strategy", "pool", "pairless"),
    [("random", "mixup", False), ("random", "lines", True), ("margin", "images", True), ("coreset", "lines", False)],
)
def test_a_strategy_says_what_it_does_with_a_pool_that_has_no_pairs(strategy, pool, pairless, make_config):
    told, candidates = how(make_config(select__strategy=strategy, pool=pool, budget__queries=40, select__first=10))
    assert told.endswith("every candidate takes the place of a pair.") == pairless and candidates


def test_of_a_part_of_the_users_own_nothing_is_said_and_no_marks_are_left(make_config):
    assert "as many as candidates says" in how(make_config(pool={"kind": "mixture", "of": ["lines", "noise"]}))[1]

    class Own(Random):
        """A user's own, which says what it likes."""

    config = make_config(pool="lines", select__strategy="random")
    assert how(config)[0] and how(config.model_copy(update={"select": Own(rounds=1)}))[0] == ""


def test_what_the_numbers_rest_on(finished):
    found = dict(reasons(finished, read_failures(of(finished), finished.student)))
    assert found["Test images"].startswith("100 of 100 test images, judged by true labels.")
    assert "seed 3" in found["One run"]
    assert found["Search"].startswith("Every candidate of the pool was scored")
    assert found["Relative entropy"].startswith(f"{finished.history[-1].relative_entropy:.2f}, where 1 means")
    poor = dict(reasons(_with_history(finished, [metrics(relative_entropy=0.3)]), None))
    assert "seen little of some classes" in poor["Relative entropy"] and "Calibration" not in poor
    search = {"keep": 0.1, "recall": 0.912, "recall_low": 0.9, "recall_high": 0.92, "passes": 1, "exhaustive": 10}
    told = dict(reasons(_with_history(finished, [metrics(round=k, search=search) for k in range(9)]), None))
    assert "the last five, round 4: 91.2 % (90.0 to 92.0); round 5" in told["Recall of the search"]
    assert recall_words(metrics(search={})) == "–"


# In a browser


@pytest.fixture(scope="module")
def looks(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("looks")
    return looked_at(write_report([of(finished)], folder / "report.html"), folder)


def test_the_page_answers_in_order_and_reads_in_light_and_dark_at_any_width(looks):
    for look in looks:
        assert look.complaints == [], "neither the console nor the accessibility checker has any"
        assert look.requests == [], "nothing is asked of any network"
        assert look.headings == QUESTIONS
        assert look.width <= look.window, "nothing is wider than the window"
        assert look.colours["text"] != look.colours["back"]
        assert (look.colours["back"] == "rgb(255, 255, 255)") == (look.scheme == "light")
        assert look.colours["figure"] == look.colours["text"], "figures follow the scheme"


def test_the_page_is_printed_on_white_with_its_config_open(looks):
    for look in looks:
        assert look.printed.startswith(b"%PDF") and look.print_back == "rgb(255, 255, 255)"
        assert look.print_config_height > 100


@pytest.mark.storm
def test_runs_side_by_side_say_how_they_differ(finished, tmp_path, teacher_weights):
    other = digits_config(teacher_weights, seed=4, select__strategy="random")
    second = run(parse_config(other), RunDirectory(tmp_path / "other"), local=True)
    page_file = write_report([of(finished), of(second)], tmp_path / "report.html")
    page = page_file.read_text()
    assert "seed: 3 -&gt; 4" in page and "select.strategy: &#39;active-mixup&#39; -&gt; &#39;random&#39;" in page
    (look,) = looked_at(page_file, tmp_path, WINDOWS[:1])
    assert look.complaints == [] and look.headings == [QUESTIONS[0], "Beside other runs", *QUESTIONS[1:]]


FUNCTION = """
def name(images):
    return images.astype("int64").sum(axis=(1, 2, 3)) % 300
"""


@pytest.mark.storm
@pytest.mark.timeout(300)
def test_a_page_stays_under_two_megabytes_whatever_the_run(own, tmp_path):
    """300 rounds, 300 classes with long names, large images of noise that no format makes small."""
    draw = np.random.default_rng(0)
    for folder, count in (("images", 40), ("test", 60)):
        (tmp_path / folder).mkdir()
        for k in range(count):
            pixels = draw.integers(0, 256, (112, 112, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{k:03d}.png")
    module = own(FUNCTION)
    names = [f"class {k} " + "of a long name " * 6 for k in range(300)]
    config = {
        "images": {"source": "folder", "path": "images"},
        "test": {"source": "folder", "path": "test"},
        "teacher": {"kind": "python", "function": f"{module}:name", "classes": names, "answers": "hard"},
        "budget": {"queries": 60, "evaluation": 60},
        "pool": {"lambdas": [0.5]},
        "select": {"strategy": "random", "rounds": 1},
        "student": {"model": "small-cnn", "epochs": 1, "augment": "none"},
    }
    directory = RunDirectory(tmp_path / "run")
    run(parse_config(config), directory, local=True)
    for number in range(2, 300):
        shutil.copytree(directory.round(1), directory.round(number), ignore=shutil.ignore_patterns("*.safetensors"))
        path = directory.artefact(number, "evaluate")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"round": number, "images": 60 + number}))
    page = write_report([directory] * 3)
    assert 200_000 < page.stat().st_size < MOST
    text = page.read_text()
    assert "60 of 300 rounds" in text and len(re.findall('src="data:image', text)) > 64
    (look,) = looked_at(page, tmp_path, WINDOWS[:1], axe=False)  # which takes minutes for so much
    assert look.complaints == [] and look.width <= look.window
