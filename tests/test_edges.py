"""Edges where things once went wrong: races, damaged files, odd replies, budgets that end in the middle of a loss."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_purchase as purchases
import test_students as students
import test_teachers as teachers
import torch
from PIL import Image
from safetensors.torch import save_file
from test_purchase import clock, make_ledger  # noqa: F401 - fixtures

from kdray.config.load import dump_config, parse_config
from kdray.errors import ConfigError, ImageSetError, ModelError, RunDirectoryError, TeacherError
from kdray.images.base import read_images
from kdray.images.parquet import ParquetImages
from kdray.images.png import encode_png
from kdray.images.torchvision import TorchvisionImages
from kdray.models.classifier import build_model
from kdray.runs.directory import RunDirectory
from kdray.runs.inputs import read_inputs
from kdray.runs.result import read_result
from kdray.runs.run import resume, run
from kdray.select.schedule import evenly
from kdray.teachers import Answers
from kdray.teachers.answers import training_targets
from kdray.training.loop import train
from kdray.training.recipe import EarlyStop


def dies_once(*first: int):
    """The script of workers that die, each once, of the batches that start with these pictures."""
    left = set(first)

    def script(asked: list[int], number: int):
        if asked[0] not in left:
            return None
        left.remove(asked[0])
        return purchases.fault("lost")

    return script


@pytest.mark.parametrize("slots", [1, 8])
def test_a_worker_that_dies_while_the_budget_ends_loses_nothing(slots, clock, make_ledger):  # noqa: F811
    ledger, line = make_ledger(10), purchases.Line(clock, dies_once(0, 8), slots=slots, metered=False)
    policy = purchases.PurchasePolicy(retry=purchases.patient())
    bought = purchases.buy(purchases.pictures(*range(12)), teachers=line, ledger=ledger, batch_size=4, policy=policy)
    assert len(bought.positions) == 10
    assert (purchases.facts(bought), ledger.remaining()) == ((10, 0, 2), 0)
    assert set(ledger.read("SELECT state FROM reservations")) == {("answered",), ("released",)}


def test_an_evaluation_cap_below_what_was_spent_buys_nothing(make_ledger):  # noqa: F811
    ledger, teacher = make_ledger(10, evaluation=5), purchases.CountingTeacher()
    purchases.purchase(purchases.pictures(1, 2, 3, 4), teacher, ledger, purpose="evaluation")
    lower = make_ledger(10, evaluation=2)
    assert lower.remaining("evaluation") == 0
    bought = purchases.purchase(purchases.pictures(5, 6), teacher, lower, purpose="evaluation", round=1)
    assert purchases.facts(bought) == (0, 0, 2)


def test_a_teacher_that_answers_too_few_leaves_no_reservation_open(make_ledger):  # noqa: F811
    class Short(purchases.CountingTeacher):
        def answer(self, images):
            return super().answer(images[1:])

    ledger = make_ledger(100)
    with pytest.raises(TeacherError, match="2 answers to 3 images"):
        purchases.purchase(purchases.pictures(1, 2, 3), Short(), ledger)
    assert ledger.read("SELECT state, rejected FROM reservations") == [("answered", 3)]
    assert purchases.money(ledger) == (0, 3, 0, 0)


def test_charged_reused_and_short_add_up(make_ledger):  # noqa: F811
    bought = purchases.purchase(purchases.pictures(1, 2, 1, 2), purchases.CountingTeacher(), make_ledger(1))
    assert (bought.charged, bought.reused, bought.short) == (1, 1, 2)


def test_early_stop_of_a_single_image_holds_none_out():
    shape = (1, 16, 16)
    recipe = students.recipe(epochs=3, early_stop=EarlyStop())
    model = build_model("lenet5", shape, 3, seed=0)
    result = train(model, students.images(1, shape), students.soft_targets(1), recipe, seed=0)
    assert 1 <= result.best_epoch <= 3


class Pair(teachers.Network):
    """A program that gives two things."""

    def forward(self, x):
        return super().forward(x), x


@pytest.mark.parametrize("shape", [(1, 13, 13), (3, 12, 12)])
def test_an_exported_program_refuses_other_shapes(shape, tmp_path):
    path = tmp_path / "network.pt2"
    batch = ({0: torch.export.Dim("b")},)
    program = torch.export.export(teachers.network(), (torch.zeros(2, *teachers.SHAPE),), dynamic_shapes=batch)
    torch.export.save(program, path)
    with pytest.raises(TeacherError, match="cannot answer images of shape"):
        teachers.local(path).build(shape)


def test_an_exported_program_of_one_batch_size_says_what_to_set(tmp_path):
    path = tmp_path / "network.pt2"
    torch.export.save(torch.export.export(teachers.network(), (torch.zeros(2, *teachers.SHAPE),)), path)
    with pytest.raises(TeacherError, match=r"needs teacher\.batch_size"):
        teachers.local(path).build(teachers.SHAPE)


def test_a_program_that_gives_a_tuple_is_refused(tmp_path):
    with pytest.raises(TeacherError, match="cannot answer"):
        teachers.local(teachers.script(teachers.network(Pair), tmp_path / "p.pt")).build(teachers.SHAPE)


def test_a_top_k_row_rounded_to_nothing_becomes_its_label():
    answers = Answers(probs=torch.zeros(1, 4), labels=torch.tensor([2]), num_classes=4)
    assert training_targets(answers, top=1).tolist() == [[0, 0, 1, 0]]


def test_a_place_of_the_top_k_that_was_rounded_to_nothing_counts_as_not_shown():
    answers = Answers(probs=torch.tensor([[0.0, 0.0, 0.7, 0.0]]), labels=torch.tensor([2]), num_classes=4)
    assert torch.allclose(training_targets(answers, top=2), torch.tensor([[0.1, 0.1, 0.7, 0.1]]))


def test_a_ragged_reply_is_refused_and_a_bfloat16_one_read():
    with pytest.raises(TeacherError, match="no array"):
        teachers.function_teacher(lambda x: [[1.0, 0, 0], [1.0]]).answer(teachers.images(2))
    third = torch.full((2, 3), 1 / 3, dtype=torch.bfloat16)
    assert teachers.function_teacher(lambda x: third).answer(teachers.images(2)).probs.shape == (2, 3)


@pytest.mark.parametrize("text", ["import os\nKEY = os.environ['KDRAY_TEST_NO_KEY']\ndef ask(x): pass", "1 / 0"])
def test_a_module_that_fails_on_import_is_a_teacher_error(text, tmp_path, monkeypatch):
    teachers.module(tmp_path, monkeypatch, "kdray_test_failing", text)
    with pytest.raises(TeacherError, match="cannot import"):
        teachers.python("kdray_test_failing:ask").build((1, 8, 8))
    with pytest.raises(TeacherError, match="cannot import"):
        teachers.python(".mod:ask").build((1, 8, 8))


def test_a_damaged_card_is_a_model_error(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"kdray": '{"model": "lenet5"}'})
    with pytest.raises(ModelError, match="description is not readable"):
        students.load_student(path)


def test_torchvision_with_kdrays_weights_says_what_they_are(tmp_path):
    teachers.save_zoo(tmp_path / "z.safetensors")
    with pytest.raises(ModelError, match="small-cnn"):
        teachers.local(tmp_path / "z.safetensors", model="torchvision/resnet18").build((3, 32, 32))


def test_no_images_get_no_answers(tmp_path):
    teachers.save_zoo(tmp_path / "z.safetensors")
    teacher = teachers.local(tmp_path / "z.safetensors", model="small-cnn").build(teachers.SHAPE)
    assert len(teacher.answer(teachers.images(0))) == 0


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("pool", "lambdas", {"min": 0, "max": float("inf"), "step": 0.1}, "pool.lambdas.max: .*finite"),
        ("pool", "lambdas", {"min": 0, "max": 1, "step": 1e-9}, "at most"),
        ("teacher", "device", "tpu", "teacher.device: 'tpu' is not a device"),
        ("student", "lr", float("inf"), "student.lr: .*finite"),
        ("images", "rows", 650, "in quotes"),
        ("images", "rows", "a:b", "whole numbers"),
        ("teacher", "classes", [], "teacher.classes"),
    ],
)
def test_config_values_that_once_got_through(section, field, value, message, make_config):
    data = make_config().model_dump()
    data[section][field] = value
    with pytest.raises(ConfigError, match=message):
        parse_config(data)


def test_a_mapping_with_a_fault_inside_is_one_line():
    data = {"images": {"source": "digits"}, "budget": {"queries": 1}, "pool": {"lambdas": {"min": 0, "max": 1}}}
    data["teacher"] = {"kind": "local", "weights": "x"}
    with pytest.raises(ConfigError) as error:
        parse_config(data)
    assert str(error.value) == "config: pool.lambdas.step is missing"


def test_the_suggested_budget_is_enough():
    with pytest.raises(ConfigError, match="at least 30,"):
        evenly(5, 10, 2, 10)


def test_any_text_survives_the_config_file(make_config, tmp_path):
    import yaml

    config = make_config(budget__currency="\x85λ ")
    assert parse_config(yaml.safe_load(dump_config(config))) == config


def test_large_binary_cells_are_read_and_a_folder_names_the_file(tmp_path):
    cell = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
    good = {"bytes": encode_png(np.full((1, 4, 4), 7, np.uint8)), "path": None}
    for name, cells in (("a", [good, good]), ("b", [good, {"bytes": b"broken", "path": None}])):
        pq.write_table(pa.table({"image": pa.array(cells, cell)}), tmp_path / f"{name}.parquet")
    rng = np.random.default_rng(0)
    read = read_images(ParquetImages(source="parquet", path=str(tmp_path / "a.parquet")), generator=rng)
    assert read.images.shape == (2, 1, 4, 4)
    with pytest.raises(ImageSetError, match=r"row 1 of .*b\.parquet is not a readable image \(unknown format\)$"):
        read_images(ParquetImages(source="parquet", path=str(tmp_path)), generator=rng)


@pytest.mark.parametrize("name", ["VisionDataset", "FakeData", "LSUN"])
def test_torchvision_classes_that_are_no_usable_sets_are_refused(tmp_path, name):
    with pytest.raises(ImageSetError):
        read_images(
            TorchvisionImages(source="torchvision", name=name, root=str(tmp_path)), generator=np.random.default_rng(0)
        )


def test_a_part_a_torchvision_set_does_not_have_is_refused(tmp_path):
    for name in ("MNIST", "ImageFolder"):
        config = TorchvisionImages(source="torchvision", name=name, root=str(tmp_path), split="val")
        with pytest.raises(ImageSetError, match="has no part 'val'"):
            read_images(config, generator=np.random.default_rng(0))


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    from kdray.images.folder import FolderImages

    Image.fromarray(np.array([[0, 257], [32768, 65535]], dtype=np.uint16)).save(tmp_path / "x.png")
    read = read_images(FolderImages(source="folder", path=str(tmp_path)), generator=np.random.default_rng(0))
    assert read.images.flatten().tolist() == [0, 1, 128, 255]


def test_a_teacher_is_not_trained_for_images_of_another_shape(tmp_path, make_config):
    weights = tmp_path / "new.safetensors"
    recipe = {"images": {"source": "digits", "rows": "0:50", "size": 20}, "epochs": 1}
    with pytest.raises(TeacherError, match=r"teacher\.train\.images"):
        read_inputs(make_config(teacher__weights=str(weights), teacher__train=recipe))
    assert not weights.exists()


def test_a_folder_with_a_config_of_its_own_is_no_run(tmp_path, config_file, make_config):
    path = config_file()
    assert path.name == "config.yaml"
    with pytest.raises(RunDirectoryError, match="holds no run"):
        resume(RunDirectory(path.parent), local=True)
    with pytest.raises(RunDirectoryError, match="not empty and holds no run"):
        run(make_config(), RunDirectory(path.parent), local=True)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["config.yaml"]


def test_damaged_metrics_are_named(tmp_path, make_config):
    directory = RunDirectory(tmp_path / "run")
    run(make_config(select__rounds=0, budget__queries=40), directory, local=True)
    directory.artefact(0, "evaluate").write_text("{")
    with pytest.raises(RunDirectoryError, match=r"metrics\.json cannot be read"):
        read_result(directory)
