"""`kdray evaluate`: a run's student, or a model file, on images, beside the teacher's answers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import command, copy_run, digits_config
from PIL import Image
from test_cli_errors import everything, only_message, refused

from kdray.config.load import load_config, parse_config
from kdray.ledger import Ledger
from kdray.ledger.receipt import lines
from kdray.metrics.classes import top_k_accuracy
from kdray.models.checkpoint import load_student
from kdray.models.predict import predict
from kdray.report.page import write_report
from kdray.runs.directory import RunDirectory
from kdray.runs.evaluation import rows_to_ask
from kdray.runs.inputs import read_test
from kdray.runs.judging import _finite, section_of_data
from kdray.runs.run import run

QUICK = ("--seconds", 0.01, "--attack", 20)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher_weights) -> Path:
    """A run of 40 and 60 queries, whose teacher was asked about 30 of the 100 test images. Only read."""
    folder = tmp_path_factory.mktemp("judged") / "run"
    changes = {"student__epochs": 4, "select": {"strategy": "random", "rounds": 1}}
    changes |= {"budget": {"queries": 100, "evaluation": 30}}
    run(parse_config(digits_config(teacher_weights, **changes)), RunDirectory(folder), local=True)
    return folder


@pytest.fixture
def own(finished, tmp_path) -> Path:
    """A copy to change."""
    return copy_run(finished, tmp_path / "run")


def evaluated(*arguments: object) -> dict:
    """What `kdray evaluate` writes to a file."""
    done = command("evaluate", *arguments, *QUICK)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("figures ")]
    return json.loads(Path(line.removeprefix("figures ")).read_text())


def spent(folder: Path) -> int:
    ledger = Ledger(folder / "ledger.sqlite", read_only=True)
    try:
        return ledger.spent("evaluation", RunDirectory(folder).owner())
    finally:
        ledger.close()


def as_folder(images: torch.Tensor, labels: torch.Tensor, folder: Path, size: int | None = None) -> Path:
    """The images as files, in a folder for each class."""
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        file = folder / str(label) / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(image[0].numpy())
        (picture if size is None else picture.resize((size, size))).save(file)
    return folder


def test_a_run_is_measured_as_its_last_round_was(own):
    found = evaluated(own)
    last = json.loads((own / "rounds" / "001" / "metrics.json").read_text())
    assert found["images"] == 100 and found["student"] == str(own / "student.safetensors")
    assert found["labelled"]["top1"]["value"] == pytest.approx(last["student_accuracy"])
    beside = found["teacher"]
    assert beside["images"] == 30 and beside["agreement"]["value"] == pytest.approx(last["agreement"])
    assert beside["agreement"]["low"] == pytest.approx(last["agreement_low"])
    assert (beside["teacher"], beside["success"]) == (
        pytest.approx(last["teacher_accuracy"]),
        pytest.approx(last["success_rate"]),
    )
    test = read_test(load_config(own / "config.yaml"))
    probs = predict(load_student(own), test.images)
    assert found["labelled"]["top5"] == top_k_accuracy(probs, test.labels, 5)
    assert np.trace(found["labelled"]["confusion"]) == round(100 * last["student_accuracy"])
    assert [one["support"] for one in found["labelled"]["classes"]] == test.labels.bincount(minlength=10).tolist()
    assert found["attacked"]["images"] == 20 and len(found["attacked"]["ifgsm"]) == 4
    assert found["size"]["parameters"] == sum(value.numel() for value in load_student(own).parameters())
    assert spent(own) == 30, "nothing was asked"


def test_the_table_says_it_too(own):
    done = command("evaluate", own, *QUICK)
    found = json.loads((own / "evaluation.json").read_text())
    for text in (
        f"{found['labelled']['top1']['value']:.2%}",
        f"{found['teacher']['agreement']['value']:.2%}",
        "on 30 images with an answer",
        f"{found['labelled']['calibration']['before']['error']:.2%}",
        f"{found['size']['parameters']:,} parameters",
        "most often taken for",
    ):
        assert text in done.stdout, text


def test_the_report_says_on_how_many_images_the_teachers_figures_are(own):
    page = write_report([RunDirectory(own)]).read_text()
    assert page.count("on 30 test images that it answered") == 3, "of 100"


def test_more_images_are_asked_about_within_a_cap_and_charged_to_the_run(own):
    """They are those that a larger budget.evaluation would have added."""
    assert evaluated(own, "--ask", 20)["teacher"]["images"] == 50 and spent(own) == 50
    ledger, config = Ledger(own / "ledger.sqlite", read_only=True), load_config(own / "config.yaml")
    test = read_test(config)
    wanted = test.images[rows_to_ask(100, 50, config.seed)]
    assert len(ledger.lookup(ledger.teachers()[0], config.teacher.input.hashes(wanted))) == 50
    ledger.close()
    assert evaluated(own)["teacher"]["images"] == 50
    assert evaluated(own, "--ask", 1000)["teacher"]["images"] == 100 and spent(own) == 100
    assert evaluated(own, "--ask", 5)["teacher"]["images"] == 100 and spent(own) == 100
    assert command("resume", own, "--local").returncode == 0 and spent(own) == 100


def test_what_a_killed_process_left_open_is_charged_and_hits_stay(own):
    ledger, owner = Ledger(own / "ledger.sqlite"), RunDirectory(own).owner()
    (teacher,) = ledger.teachers()
    ledger.record_hits(teacher, 7, purpose="evaluation", round=1, owner=owner)
    ledger.open_account(owner, {"evaluation": 35})
    ledger.reserve(5, purpose="evaluation", teacher=teacher, owner=owner, round=1)
    ledger.close()
    done = command("evaluate", own, "--ask", 3, *QUICK)
    assert "5 queries were on their way when kdray died: they count as charged" in done.stderr + done.stdout
    assert spent(own) == 30 + 5 + 3
    ledger = Ledger(own / "ledger.sqlite", read_only=True)
    assert (ledger.reserved(), ledger.uncertain("evaluation")) == (0, 5)
    assert sum(line.hits for line in lines(ledger)) == 7
    ledger.close()
    assert "after" in command("ledger", own).stdout


def test_another_teacher_is_not_asked(own, teacher_weights):
    config = own / "config.yaml"
    config.write_text(config.read_text().replace("answers: soft", "answers: hard"))
    before = everything(own)
    done = command("evaluate", own, "--ask", 3, *QUICK)
    assert done.returncode == 2
    assert "has bought its answers from" in only_message(done.stderr[done.stderr.index("kdray: ") :])
    assert everything(own) == before


def test_a_run_that_another_process_works_in_asks_nothing(own):
    held = RunDirectory(own)
    held.lock()
    try:
        done = command("evaluate", own, "--ask", 3, *QUICK)
    finally:
        held.unlock()
    assert done.returncode == 2 and "another kdray process is working in" in done.stderr and spent(own) == 30


@pytest.mark.parametrize("export", [False, pytest.param(True, marks=pytest.mark.storm)])
def test_a_model_is_measured_on_a_folder_beside_given_answers(export, own, tmp_path):
    test = read_test(load_config(own / "config.yaml"))
    expected = evaluated(own)
    pets = as_folder(test.images, test.labels, tmp_path / "pets")
    answers = own / "ledger.sqlite"
    if export:
        answers = tmp_path / "answers.parquet"
        assert command("ledger", own, "--export", answers).returncode == 0
    model = shutil.copy(own / "student.safetensors", tmp_path / "mine.safetensors")
    found = evaluated(model, "--data", pets, "--answers", answers)
    assert (tmp_path / "mine.evaluation.json").exists()
    assert found["labelled"]["top1"] == expected["labelled"]["top1"]
    errors = [one["labelled"]["calibration"]["before"]["error"] for one in (found, expected)]
    assert errors[0] == pytest.approx(errors[1])  # files come in another order
    assert found["teacher"] == expected["teacher"]
    assert evaluated(model, "--data", pets)["teacher"] is None
    assert evaluated(own, "--data", pets, "--out", tmp_path / "out.json")["teacher"] == expected["teacher"]


def test_images_of_another_size_become_those_of_the_student(own, tmp_path):
    test = read_test(load_config(own / "config.yaml"))
    pets = as_folder(test.images, test.labels, tmp_path / "pets", size=32)
    found = evaluated(own, "--data", pets)
    assert found["test"]["size"] == [16, 16] and found["test"]["colour"] == "grey"
    assert found["labelled"]["top1"]["value"] > 0.8 * evaluated(own)["labelled"]["top1"]["value"]
    assert found["teacher"] is None
    done = command("evaluate", own, "--data", pets, "test.size=8", *QUICK)
    assert done.returncode == 2 and "its images have shape (1, 8, 8), the student takes (1, 16, 16)" in done.stderr


def test_images_that_the_student_was_trained_on_are_counted(own, tmp_path):
    directory = RunDirectory(own)
    bought = directory.read_labelled(0, 10).images
    test = read_test(load_config(directory.config), shape=(1, 16, 16))
    images = torch.cat([bought, test.images[:10], directory.read_labelled(1, 10).images[:3]])
    folder = as_folder(images, torch.cat([torch.zeros(40), test.labels[:10], torch.zeros(3)]).long(), tmp_path / "all")
    done = command("evaluate", own, *QUICK, "--data", folder)
    assert done.returncode == 0 and "the student was trained on 43 of these 53 images" in done.stdout + done.stderr
    done = command("evaluate", own, *QUICK)
    assert done.returncode == 0 and "was trained on" not in done.stdout + done.stderr


def test_images_without_labels_show_agreement_alone(own, tmp_path):
    test = read_test(load_config(own / "config.yaml"))
    plain = tmp_path / "plain"
    as_folder(test.images, torch.zeros(100, dtype=torch.int64), plain)
    for file in (plain / "0").iterdir():
        file.rename(plain / file.name)
    (plain / "0").rmdir()
    found = evaluated(own, "--data", plain)
    assert (found["labelled"], found["attacked"], found["v_measure"]) == (None, None, None)
    assert found["teacher"]["images"] == 30 and found["teacher"]["teacher"] is None


def test_other_images_are_named_field_by_field(own):
    found = evaluated(own, "test.rows=900:1000", "test.count=10")
    assert found["images"] == 10 and found["test"]["digest"] is None
    model = own / "student.safetensors"
    assert evaluated(model, "test.source=digits", "test.rows=900:950")["images"] == 50


def test_another_source_has_fields_of_its_own(own, tmp_path):
    test = read_test(load_config(own / "config.yaml"))
    pets = as_folder(test.images[:30], test.labels[:30], tmp_path / "pets")
    assert evaluated(own, "test.source=folder", f"test.path={pets}")["images"] == 30
    assert evaluated(own, f"test={{source: folder, path: {pets}, count: 7}}")["images"] == 7


def test_without_its_ledger_a_run_asks_nothing(own):
    (own / "ledger.sqlite").unlink()
    assert evaluated(own)["teacher"] is None
    before = everything(own)
    done = command("evaluate", own, "--ask", 3, *QUICK)
    assert done.returncode == 2 and "ledger.sqlite knows nothing of this run" in done.stderr
    assert everything(own) == before
    Ledger(own / "ledger.sqlite", 10).close()
    done = command("evaluate", own, "--ask", 3, *QUICK)
    assert done.returncode == 2 and "ledger.sqlite knows nothing of this run" in done.stderr


def test_data_may_be_a_parquet_file_or_a_folder_of_them(own, tmp_path):
    part = next((own / "labelled").rglob("*.parquet"))
    assert section_of_data(part)["source"] == section_of_data(part.parent)["source"] == "parquet"
    assert evaluated(own, "--data", part, "test.label_column=label")["images"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing is not there; give a run directory, or a model file of kdray's"),
        (["folder"], "folder is a folder that holds no run; give a run directory, or a model file"),
        (["text.safetensors"], "text.safetensors is not a readable safetensors file"),
        (["RUN", "student.lr=1"], "override 'student.lr=1': only fields of test can be changed here"),
        (["RUN", "--data", "nothing"], "nothing is not there; give a folder of images, or of parquet files"),
        (["RUN", "--data", "text.safetensors"], "text.safetensors is neither a folder nor a parquet file"),
        (["RUN", "--answers", "nothing"], "nothing is no file; give a ledger, or what"),
        (["RUN", "--answers", "text.safetensors"], "cannot use text.safetensors as a ledger"),
        (["RUN", "--ask", "-1"], "--ask: got -1; give 0 or more"),
        (["RUN", "--attack", "-1"], "--attack: got -1; give 0 or more"),
        (["RUN", "--seconds", "0"], "--seconds: got 0; give more than 0"),
        (["RUN", "test.rows=2000:3000"], "test"),
        (["MODEL", "--ask", "5", "--data", "folder"], "--ask 5 needs a run, whose teacher is asked, and"),
        (["MODEL"], "names no images to measure on; give --data PATH, or fields of test"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(arguments, message, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("text.safetensors").write_text("a text")
    paths = {"RUN": finished, "MODEL": finished / "student.safetensors"}
    found = refused("evaluate", *(paths.get(text, text) for text in arguments), unchanged=(finished,))
    assert message in found


def test_a_run_without_a_student_says_how_to_go_on(own):
    shutil.rmtree(own / "rounds")
    (own / "student.safetensors").unlink()
    done = command("evaluate", own)
    assert done.returncode == 2 and f"go on with: kdray resume {own}" in done.stderr


def test_answers_of_two_teachers_are_refused(own, tmp_path):
    ledger = Ledger(tmp_path / "two.sqlite", 10)
    for teacher in ("one", "two"):
        ledger.reserve(1, teacher=teacher)
    ledger.close()
    done = command("evaluate", own, "--answers", tmp_path / "two.sqlite", *QUICK)
    assert done.returncode == 2 and "has answers of 2 teachers (one, two); give a file with those of one" in done.stderr


def test_what_json_has_no_number_for_is_null():
    assert _finite({"a": [1.0, float("inf"), float("nan")], "b": (True, "x", None)}) == {
        "a": [1.0, None, None],
        "b": [True, "x", None],
    }
