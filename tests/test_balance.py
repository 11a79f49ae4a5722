"""How evenly answers are spread over the classes, and what a run says of it."""

import math

import numpy as np
import pytest
import torch
from conftest import command
from hypothesis import given
from hypothesis import strategies as st

from kdray.report.page import write_report
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run
from kdray.select.balance import ALIKE, LOW, all_alike, imbalance, relative_entropy


def test_by_hand():
    assert relative_entropy(torch.tensor([0, 1, 2, 3]), 4) == pytest.approx(1)
    assert relative_entropy(torch.tensor([2, 2, 2]), 4) == 0
    assert relative_entropy(torch.tensor([0, 1]), 4) == pytest.approx(0.5)
    assert relative_entropy(torch.tensor([0, 0, 0, 1]), 2) == pytest.approx(0.811278, abs=1e-6)
    assert relative_entropy(torch.tensor([], dtype=torch.int64), 3) == 0
    assert relative_entropy(torch.tensor([0, 0]), 1) == 1


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.permutations(range(5)))
def test_it_lies_between_0_and_1_and_knows_no_order(labels, names):
    entropy = relative_entropy(torch.tensor(labels), 5)
    assert 0 <= entropy <= 1
    renamed = torch.tensor([names[label] for label in reversed(labels)])
    assert relative_entropy(renamed, 5) == pytest.approx(entropy)
    counts = [labels.count(label) / len(labels) for label in set(labels)]
    assert entropy == pytest.approx(sum(-p * math.log(p, 5) for p in counts))


def test_lists_and_arrays_are_labels_too():
    assert relative_entropy([0, 1], 4) == relative_entropy(np.array([0, 1], np.uint8), 4) == pytest.approx(0.5)
    assert relative_entropy([], 3) == 0


@pytest.mark.parametrize(
    ("labels", "classes"),
    [([3], 3), ([-1], 3), ([0], 0), ([0.5], 3), ([[0, 1]], 3), ([True], 3)],
)
def test_labels_that_are_no_classes_are_refused(labels, classes):
    with pytest.raises(ValueError, match="must"):
        relative_entropy(torch.tensor(labels), classes)


def test_few_classes_are_told_and_few_answers_are_not():
    few = torch.tensor([0] * 35 + [1] * 5)
    assert relative_entropy(few, 4) < LOW
    told = imbalance(few, 4, can_balance=True)
    assert told and "the 40 answers so far" in told and "2 of 4 classes have none" in told
    assert all(way in told for way in ("select.balance: 8", "pool.kind"))
    assert imbalance(few[:39], 4, can_balance=True) is None
    assert imbalance(torch.arange(40) % 4, 4, can_balance=True) is None


def test_two_hundred_answers_are_enough_of_however_many_classes():
    assert imbalance(torch.zeros(199, dtype=torch.int64), 1000, can_balance=True) is None
    told = imbalance(torch.zeros(200, dtype=torch.int64), 1000, can_balance=True)
    assert told and "relative entropy 0.00, where 1 is even, and so few answers can have 0.77; 999 of 1,000" in told
    told = imbalance(torch.arange(4000) % 30, 1000, can_balance=True)
    assert told and "relative entropy 0.49, where 1 is even; 970 of 1,000 classes have none" in told
    assert imbalance(torch.arange(200), 1000, can_balance=True) is None, "0.77 is all that they can have"
    assert imbalance(torch.randint(1000, (200,), generator=torch.manual_seed(0)), 1000, can_balance=True) is None


def test_a_warning_comes_under_six_tenths():
    even, few = (torch.tensor([0] * most + [1] * (100 - most)) for most in (85, 86))
    assert imbalance(even, 2, can_balance=True) is None, "0.610"
    assert "relative entropy 0.58" in (imbalance(few, 2, can_balance=True) or "")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, True),
        ({"select__balance": 8}, False),  # set already
        ({"select__strategy": "rad"}, False),  # refused with it
        ({"pool": {"kind": "boundary", "of": "lines"}, "select__strategy": "random"}, False),
    ],
    ids=("plain", "set", "rad", "boundary"),
)
def test_balance_is_named_only_where_it_could_be_set(make_config, changes, named):
    config = make_config(**changes)
    told = imbalance(torch.tensor([0] * 35 + [1] * 5), 4, can_balance=config.can_balance)
    assert told and "pool.kind" in told
    assert ("select.balance: 8" in told) is named


def test_a_run_keeps_it_after_every_round(make_config, tmp_path):
    done = run(make_config(student__epochs=1), RunDirectory(tmp_path / "run"), local=True)
    labels = torch.cat([part.answers.labels for part in done.labelled])
    assert [metrics.relative_entropy for metrics in done.history] == [
        pytest.approx(relative_entropy(labels[:until], 10)) for until in (40, 100, 160)
    ]
    page = write_report([RunDirectory(tmp_path / "run")]).read_text()
    table = page.split('<th scope="col">entropy</th>')[1].split("</table>")[0]
    rows = table.split('<tr><th scope="row">')[1:]
    for metrics, row in zip(done.history, rows, strict=True):
        assert row.startswith(f"{metrics.round}</th>") and f"<td>{metrics.relative_entropy:.2f}</td>" in row


def test_answers_are_all_alike_where_nothing_differs():
    same = torch.eye(3)[[1] * ALIKE]
    assert all_alike(same) and not all_alike(same[1:])
    other = same.clone()
    other[5] = torch.tensor([0.1, 0.8, 0.1])
    assert not all_alike(other), "probabilities that differ teach something, though the class is the same"


def test_a_run_of_one_class_is_told_so(config_file, tmp_path):
    code = "import torch\n\n\ndef seven(images):\n    return torch.full((len(images),), 7)\n"
    (tmp_path / "constant.py").write_text(code)
    teacher = {"kind": "python", "function": "constant:seven", "classes": 10, "answers": "hard"}
    file = config_file(teacher=teacher, student__epochs=1, budget__queries=150)
    done = command("run", file, "--local", "--out", tmp_path / "run", cwd=tmp_path)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, said
    assert "the 150 answers so far favour few classes: relative entropy 0.00" in said
    assert "9 of 10 classes have none" in said
