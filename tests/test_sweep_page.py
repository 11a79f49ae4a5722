"""The page of a sweep and its figures."""

import dataclasses
import math
import random
import re
from html.parser import HTMLParser

import pytest
from browser import looked_at
from sweep_trials import after, trial

from kdray.pages.figures import plain, set_apart, short_number, suits_logarithm
from kdray.sweeps.figures import curve_figure, heat_map, importance_figure, key_figures, queries_figure
from kdray.sweeps.importance import Importance, Importances
from kdray.sweeps.page import SweepFacts, write_page
from kdray.sweeps.parallel import parallel_figure
from kdray.sweeps.results import Trial

HOSTILE = "<script>alert('x')</script> & \"$\\frac{$ \udcff"
FACTS = SweepFacts(
    title="budgets", metric="student_accuracy", mode="max", cap=5000, bought=1234, price=0.5, currency="€",
    config="space:\n  select.w: {grid: [0.1, 0.2]}\n", command="kdray run base.yaml select.w=0.1",
)  # fmt: skip
pytestmark = pytest.mark.xdist_group("browser")
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """A parsed page: its tags, what they refer to, its text outside figures, its figures' text, rows of its tables."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.refers, self.open, self.text, self.figures, self.rows = [], [], [], "", "", []
        self.feed(html)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.refers += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "svg" in self.open:
            self.figures += data + "\n"
        elif "style" not in self.open:
            self.text += data
            if self.open and ("td" in self.open or "th" in self.open):
                self.rows[-1][-1] += data


def page_of(folder, trials, **facts):
    path = write_page(folder, dataclasses.replace(FACTS, **facts), trials)
    assert path == folder / "report.html"
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert all(reference.startswith("#") for reference in page.refers), "nothing is fetched"
    assert not {"script", "link", "iframe", "object", "embed", "img", "form"} & set(page.tags)
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    return page


@pytest.mark.storm
def test_the_page_reads_in_light_and_dark_at_any_width_and_by_screen_readers(tmp_path):
    trials = swept(9, kind=3)
    page_of(tmp_path, trials)
    for look in looked_at(tmp_path / "report.html", tmp_path):
        assert look.complaints == [] and look.requests == []
        assert look.width <= look.window and look.colours["figure"] == look.colours["text"]


def test_numbers_on_cells_keep_their_colour_whatever_the_page_is():
    trials = [trial(f"t{k}", [0.7 + 0.02 * k], x=k % 3, y=k // 3) for k in range(9)]
    figure = heat_map(trials, "student_accuracy", "max", "x", "y")
    for k in range(9):
        (style,) = re.findall(f'<text style="([^"]*)"[^>]*>{70 + 2 * k}</text>', figure)[:1]
        assert "#fffffe" in style or "#1f2934" in style


def swept(count=12, seeds=2, **fixed):
    """Trials over two numeric keys and one that is not."""
    draw = random.Random(0)
    trials = []
    for k in range(count):
        w, least, kind = 10 ** (-4 * k / (count - 1)), draw.uniform(0.1, 0.4), draw.choice(["x", "y"])
        values = {"select__w": w, "pool__lambdas__min": least, "pool__kind": kind}
        accuracies = [0.8 + 0.1 * least - 0.01 * abs(math.log10(w)) + draw.gauss(0, 0.005) for _ in range(seeds)]
        trials.append(trial(f"t{k:02d}", accuracies, paid=100 + 10 * k, **values, **fixed))
    return trials


def test_the_page_stands_alone_and_has_all_trials(tmp_path):
    failed = trial("broken", state="failed", cause="the teacher refused: 401", select__w=0.5)
    stopped = trial("early", (0.7, 0.7), state="stopped", select__w=0.6, pool__kind="x")
    page = page_of(tmp_path, [failed, *swept(), stopped, trial("next", state="waiting")])
    listed = [row[0] for row in page.rows if len(row) == 10]
    assert listed[0] == "trial" and len(listed) == 16
    assert set(listed[1:]) == {f"t{k:02d}" for k in range(12)} | {"broken", "early", "next"}
    assert listed[13:] == ["early", "broken", "next"], "finished ones first, then by figure, then those without"
    assert ["the teacher refused: 401"] in page.rows
    assert "12 finished, 1 failed, 1 stopped, 1 waiting" in page.text and "The sweep is not done" in page.text
    assert page.tags.count("svg") == 4, "queries, parallel coordinates, curve over w, importance"
    assert FACTS.config in page.text


def test_the_best_is_named_with_its_figure_scope_values_and_command(tmp_path):
    trials = [trial("a", (0.8, 0.9), paid=70, reused=30, select__w=0.1), trial("b", (0.7, 0.7), select__w=0.25)]
    page = page_of(tmp_path, trials)
    assert "85.00 ± 5.00 %" in page.text
    assert "Trial a has the highest mean of student_accuracy over 2 seeds after the last round" in page.text
    assert "among 2 finished of 2 trials" in page.text
    assert ["select.w", "0.1"] in page.rows and FACTS.command in page.text and "best.yaml" in page.text
    assert [row for row in page.rows if row[0] in "ab"] == [
        ["a", "finished", "85.00 ± 5.00 %", "0.1", "1", "200", "140", "60"],
        ["b", "finished", "70.00 ± 0.00 %", "0.25", "1", "200", "200", "0"],
    ]
    assert page_of(tmp_path, trials, mode="min").text.count("Trial b has the lowest") == 1


def test_what_it_cost(tmp_path):
    page = page_of(tmp_path, [trial("a", (0.8, 0.9), paid=70, reused=30, select__w=0.1)])
    assert "1,294" in page.text and "1,234" in page.text and "of at most 5,000" in page.text
    assert "617.00 €" in page.text and "30.00 €" in page.text  # 1,234 and 60 queries
    free = page_of(tmp_path, [trial("a", (0.8,))], price=None, cap=None)
    assert "€" not in free.text and "at most so many" in free.text and "of at most" not in free.text


@pytest.mark.parametrize(
    "trials", [[], [trial("a", state="failed", cause="no GPU", select__w=1)]], ids=["none", "failed"]
)
def test_without_a_best_trial_the_page_says_so(tmp_path, trials):
    page = page_of(tmp_path, trials, command="")
    assert "so there is no best one" in page.text and "svg" not in page.tags
    assert "needs at least 5 finished trials" in page.text
    assert ("no GPU" in page.text) == bool(trials)


def test_hostile_names_are_text(tmp_path):
    trials = [
        trial(f"{k}{HOSTILE}", (0.1 * k, 0.1), cause=HOSTILE, **{f"key{HOSTILE}": f"{k}{HOSTILE}", "select__w": k})
        for k in range(1, 7)
    ]
    page = page_of(tmp_path, trials, title=HOSTILE, config=HOSTILE, command=HOSTILE, currency=HOSTILE)
    seen = HOSTILE.replace("\udcff", "\\xff")
    assert page.text.count(seen) >= 20 and "<script>" in page.figures and "script" not in page.tags
    assert [row[0] for row in page.rows if len(row) == 9][1:] == [f"{k}{seen}" for k in (6, 5, 4, 3, 2, 1)]


@pytest.mark.storm
def test_a_page_of_forty_trials_and_six_keys(tmp_path):
    trials = swept(20, a=[1, 2], b=None, c=True)
    trials += swept(20, a=[3], b=1, c=False)
    page = page_of(tmp_path, [dataclasses.replace(t, name=f"n{k}") for k, t in enumerate(trials)])
    assert all(f"n{k}" in page.text for k in range(40))


def test_a_figure_about_queries_marks_the_front_and_the_best():
    trials = swept()
    text = queries_figure(trials, "student_accuracy", "max")
    assert "Pareto front" in text and "best: " in text and "student accuracy, %" in text
    assert queries_figure([], "student_accuracy", "max") is None
    assert queries_figure(trials, "agreement", "max") is None, "not measured"
    assert "best" not in queries_figure([trial("a", (0.5,), state="running")], "student_accuracy", "max")


def test_parallel_coordinates_have_an_axis_for_each_key_that_varies():
    text = parallel_figure([*swept(fixed=1), trial("x", state="failed", fixed=2)], "student_accuracy", "max")
    words = re.findall(r">([^<>]+)</text>", text)
    assert {"select.w", "pool.kind", "student accuracy, %", "x", "y"} <= set(words) and "fixed" not in words
    assert {"pool.lambdas.", "min", "0.1", "0.01"} <= set(words), "powers of ten on a logarithmic axis"


@pytest.mark.parametrize("trials", [[], [trial("a", (0.5,), b=1, c=1)], [trial(n, (0.5,), b=n) for n in "ab"]])
def test_parallel_coordinates_need_two_trials_and_two_keys(trials):
    assert parallel_figure(trials, "student_accuracy", "max") is None


def test_trials_that_are_equal_in_the_metric_have_figures_too():
    trials = [trial(f"{x}{y}", (0.5, 0.5), x=x, y=y) for x in (1, 2) for y in (0, 1e-9, 10**9)]
    assert parallel_figure(trials, "student_accuracy", "min") and heat_map(trials, "student_accuracy", "max", "x", "y")
    assert curve_figure(trials, "student_accuracy", "y", "x") and queries_figure(trials, "student_accuracy", "max")


def words_of(figure):
    return [word.strip() for word in re.findall(r">([^<>]+)</text>", figure)]


def test_a_heat_map_on_a_grid_shows_the_mean_of_each_cell():
    trials = [
        trial(f"{x}{y}{z}", (0.5 + x + y / 10 + z,), x=x, y=y, z=z)
        for x in (0.1, 0.2)
        for y in (1, 2)
        for z in (0, 0.1)
    ]
    words = words_of(heat_map(trials, "student_accuracy", "max", "x", "y"))
    assert {"75", "85", "95"} <= set(words) and words.count("85") >= 1  # 0.5 + 0.1 + 0.1 + (0 + 0.1) / 2
    assert heat_map(trials[:4], "student_accuracy", "max", "x", "y") is None, "one value of x"


def test_off_a_grid_the_map_has_points():
    trials = swept()
    assert heat_map(trials, "student_accuracy", "min", "select.w", "pool.lambdas.min")
    (curve,) = key_figures(trials, "student_accuracy", "max")
    assert "against select.w" in curve.caption, "a map of any two keys needs a grid"


@pytest.mark.parametrize(
    ("keys", "captions"),
    [
        ({"select.w": (0.1, 0.2, 0.3)}, ["against select.w; the bars"]),
        ({"select.strategy": ("rad", "random")}, ["against select.strategy; the bars"]),
        ({"select.w": (0.1, "auto")}, ["against select.w; the bars"]),
        ({"select.w": (0.1, 0.2), "select.m": (0.05, "estimate")}, ["against select.w, for each select.m; the bars"]),
        (
            {"pool.lambdas.min": (0.1, 0.2), "pool.lambdas.max": (0.8, 0.9)},
            ["over pool.lambdas.min and pool.lambdas.max", "against pool.lambdas.min, for each pool.lambdas.max"],
        ),
        (
            {"budget.queries": (250, 500, 1000), "select.strategy": ("rad", "random")},
            ["against budget.queries, for each select.strategy"],
        ),
        (
            {"pool.lambdas.min": (0.1, 0.2), "pool.lambdas.max": (0.8, 0.9), "x": (1, 2), "select.w": (0.5, 0.6)},
            ["over pool.lambdas.min and pool.lambdas.max, mean over trials", "against select.w; the bars"],
        ),
        ({"x": (1, 2), "y": (1, 2), "z": (1, 2)}, []),
        ({"x": tuple("abcdefgh"), "y": tuple("abcdefgh")}, ["against x; the bars", "against y; the bars"]),
        ({"x": (1,)}, []),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_figures_that_suit_what_was_swept(keys, captions):
    rows = [{}]
    for key, values in keys.items():
        rows = [row | {key: value} for row in rows for value in values]
    trials = [trial(f"t{k:02d}", (0.5, 0.5 + 0.01 * (k % 7)), **row) for k, row in enumerate(rows)]
    found = key_figures(trials, "student_accuracy", "max")
    assert len(found) == len(captions), [item.caption for item in found]
    for item, caption in zip(found, captions, strict=True):
        assert item.caption.startswith(f"student_accuracy {caption}") and item.svg.startswith("<svg")


def test_a_curve_has_error_bars_over_seeds_and_a_line_for_each_value():
    trials = [trial(f"{w}{m}", (0.5, 0.6), w=w, m=m) for w in (0, 0.01, 1) for m in (0.05, 0.1)]
    several = curve_figure(trials, "student_accuracy", "w", "m")
    assert {"0", "0.01", "1", "0.05", "0.1", "w", "m"} <= set(words_of(several))
    one_seed = [trial(t.name, (0.5,), **t.values) for t in trials]
    assert "LineCollection" in several and "LineCollection" not in curve_figure(one_seed, "student_accuracy", "w", "m")
    assert curve_figure(trials, "student_accuracy", "missing") is None


def test_figures_leave_out_trials_that_were_stopped_or_measured_nothing():
    trials = [trial("a", (0.5,), w=1), trial("b", (math.nan,), w=2), trial("c", (0.4,), state="stopped", w=3)]
    assert (
        curve_figure(trials, "student_accuracy", "w") is None and key_figures(trials, "student_accuracy", "max") == []
    )


def test_bars_of_importance():
    found = Importances(keys=(Importance(key="select.w", mean=0.7, deviation=0.1),), trials=9, fit=0.5)
    assert "select.w" in words_of(importance_figure(found))
    assert importance_figure(Importances(why_not="few")) is None


def test_rounds_of_a_metric_that_is_no_share_are_shown_as_they_are(tmp_path):
    histories = [[after(0, loss=2.5), after(1, loss=1.25, paid=150)]]
    one = Trial(name="a", values={"w": 1}, state="finished", cause="", seeds=(0,), histories=histories)
    page = page_of(tmp_path, [one], metric="loss", mode="min")
    assert "1.25" in page.text and "%" not in page.text.split("Trials")[0] and "loss" in page.figures


def test_labels_and_ticks():
    assert plain("a$b$") == r"a\$b\$" and plain("x" * 50) == "x" * 39 + "…" and plain("a\n\tb\x00") == "a b�"
    assert plain("_run").endswith("_run") and not plain("_run").startswith("_")
    assert [short_number(v) for v in (2000, 0.25, 1.0, 1e-5, 123456.789)] == [
        "2,000",
        "0.25",
        "1",
        "1e-05",
        "1.235e+05",
    ]
    assert suits_logarithm([1e-4, 1e-3, 1e-2, 0.1, 1], span=100) and not suits_logarithm([1e-4, 0.4, 0.5, 1], span=100)
    assert not suits_logarithm([0.0, 1e-4, 1e-3, 1], span=100) and not suits_logarithm([1, 2, 50], span=100)
    assert set_apart([(0.0, "a"), (0.02, "b"), (0.5, "c"), (0.99, "d"), (1.0, "e")], 0.05) == [
        (0.0, "a"), (1.0, "e"), (0.5, "c"),
    ]  # fmt: skip
