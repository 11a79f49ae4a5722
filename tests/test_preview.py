"""`kdray preview`: contact sheets of pools, and of what runs have bought."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import command, copy_run, digits_config, examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_cli_errors import everything, only_message

from kdray.config.load import load_config, parse_config
from kdray.errors import ConfigError, RunDirectoryError
from kdray.models.checkpoint import load_student
from kdray.models.predict import predict
from kdray.report.choice import preview_choice
from kdray.report.groups import groups_of_pool, groups_of_run
from kdray.report.preview import Preview, answer_lines, preview_pool, preview_run, shares
from kdray.report.sheet import Caption, Part, contact_sheet
from kdray.runs import tables
from kdray.runs.directory import RunDirectory
from kdray.runs.pool_schedule import read_pool
from kdray.runs.run import run
from kdray.runs.tables import Labelled
from kdray.teachers.answers import Answers


def pixels(sheet: Image.Image) -> np.ndarray:
    return np.asarray(sheet)  # [H, W, 3]


def test_shares_by_hand():
    assert shares([100, 450, 450], 64) == [22, 21, 21]
    assert shares([100, 10, 100], 64) == [27, 10, 27]
    assert shares([0, 5, 5], 3) == [0, 2, 1] and shares([2, 3], 64) == [2, 3] and shares([9, 9, 9], 2) == [1, 1, 0]


@examples(50)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(1, 200))
def test_shares_are_even_and_complete(sizes, count):
    divided = shares(sizes, count)
    assert sum(divided) == min(count, sum(sizes)) and all(
        0 <= got <= size for got, size in zip(divided, sizes, strict=True)
    )
    assert (
        max(divided) - min([got for got, size in zip(divided, sizes, strict=True) if got < size] or [max(divided)]) <= 1
    )


# Pools


def by_id(shown: Part) -> list[int]:
    """The ids in the captions."""
    texts = [text for caption in shown.captions for line in caption.about for text in line]
    return [int(text.removeprefix("id ")) for text in texts if text.startswith("id ")]


@pytest.mark.parametrize(
    "pool", [{"kind": "mixup"}, {"kind": "pairs", "pre": "affine"}, {"kind": "images"}, {"kind": "lines"}], ids=str
)
def test_a_sheet_shows_candidates_of_the_pool(pool, make_config):
    config = make_config(pool=pool, budget__queries=40, select__first=10)
    whole, preview = read_pool(config).pool, preview_pool(config, 9)
    (shown,) = preview.parts
    ids = torch.tensor(by_id(shown))
    assert len(set(ids.tolist())) == 9 and torch.equal(shown.images, whole.render(ids))
    assert preview.what == f"9 of {len(whole):,} candidates, drawn at random"
    assert shown.title == f"{whole.source}: 9 of {len(whole):,} candidates"
    again, more = (preview_pool(config, count).parts[0].images for count in (9, 12))
    assert torch.equal(again, shown.images) and torch.equal(more[:9], shown.images)
    other = preview_pool(config.model_copy(update={"seed": 4}), 9).parts[0]
    assert by_id(other) != ids.tolist()


def test_a_caption_says_what_a_mix_is_made_of(make_config):
    config = make_config()
    (shown,) = preview_pool(config, 5).parts
    columns = read_pool(config).pool.describe(torch.tensor(by_id(shown)))
    rows = zip(shown.captions, *(columns[name] for name in ("i", "j", "lambda")), by_id(shown), strict=True)
    for caption, i, j, mix, key in rows:
        assert caption == Caption(about=[(f"#{i} + #{j}", ""), (f"λ {mix:g}", f"id {key}")])


def test_all_of_a_small_pool_is_shown(make_config):
    config = make_config(pool={"kind": "images"}, budget__queries=40, select__first=10)
    (shown,) = preview_pool(config, 64).parts
    assert sorted(by_id(shown)) == list(range(40)) and shown.title == "image: 40 of 40 candidates"


def test_each_kind_of_an_auto_pool_has_its_rows(make_config):
    kinds = [{"kind": "mixup"}, {"kind": "pairs", "blend": "cutmix", "pre": "affine"}]
    config = make_config(pool={"kind": "auto", "of": kinds})
    whole, preview = read_pool(config).pool, preview_pool(config, 9)
    assert [shown.title.partition(":")[0] for shown in preview.parts] == ["mixup", "affine+cutmix"]
    assert [len(shown.images) for shown in preview.parts] == [4, 5]
    for number, shown in enumerate(preview.parts):
        ids = torch.tensor(by_id(shown))
        assert torch.equal(shown.images, whole.render(ids)) and set(whole.numbers(ids).tolist()) == {number}


def test_a_pool_of_any_size_is_shown_at_once(make_config):
    config = make_config(pool={"kind": "noise", "candidates": 10**15})
    assert preview_pool(config, 3).parts[0].title == "noise: 3 of 1,000,000,000,000,000 candidates"


def test_a_config_is_shown_without_a_teacher_and_nothing_but_the_sheet_is_written(config_file, tmp_path):
    path = config_file(teacher__weights=str(tmp_path / "nowhere.safetensors"))
    done = command(
        "preview", path, "pool.lambdas=[0.5]", "--count", 6, "--columns", 3, cwd=tmp_path, env={"KDRAY_RUNS": ""}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "6 of 780 candidates, drawn at random: runs/config-preview.png\n"
    assert sorted(everything(tmp_path)) == ["config.yaml", "runs", "runs/config-preview.png"]
    config = load_config(path, ["pool.lambdas=[0.5]"])
    want = contact_sheet(preview_pool(config, 6).parts, 3)
    assert np.array_equal(pixels(Image.open(tmp_path / "runs" / "config-preview.png")), pixels(want))


def test_a_sheet_comes_with_what_there_is_to_know_of_its_images_and_pool(tmp_path, teacher_weights):
    for name in "abde":
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / f"{name}.png")
    (tmp_path / "c.txt").write_text("no image")
    source = {"source": "folder", "path": str(tmp_path), "size": 16}
    file = f"images: 1 file of {tmp_path} is no image and was left out (.txt 1)"
    size = "pool.candidates: auto takes 50,000, 25,000 for each of the 2 candidates to choose"
    for pool, show, notes in (("spectrum", preview_pool, [file, size]), ("mixup", groups_of_pool, [file])):
        config = parse_config(
            digits_config(teacher_weights, images=source, pool=pool, budget__queries=4, select__first=2)
        )
        assert list(show(config, 2).notes) == notes


def test_the_command_prints_what_there_is_to_know_before_the_sheet(config_file, tmp_path):
    done = command("preview", config_file(), "pool=spectrum", "--count", 2, "--out", tmp_path / "sheet.png")
    note, sheet = done.stdout.splitlines()
    assert note.startswith("pool.candidates: auto takes 50,000") and sheet.startswith("2 of 50,000 candidates")


def test_a_sheet_may_be_written_again_but_nothing_else_is_overwritten(config_file, tmp_path):
    sheet, other = tmp_path / "sheet.png", tmp_path / "other.PNG"
    assert command("preview", config_file(), "--count", 4, "--out", sheet).returncode == 0
    before = sheet.read_bytes()
    assert command("preview", config_file(), "--count", 5, "--out", sheet).returncode == 0
    assert sheet.read_bytes() != before
    assert command("preview", config_file(), "--count", 4, "--out", sheet).returncode == 0
    assert sheet.read_bytes() == before
    Image.new("RGB", (8, 8)).save(other)
    (tmp_path / "text.png").write_text("chapter 1")
    for path in (other, tmp_path / "text.png"):
        before = everything(tmp_path)
        done = command("preview", config_file(), "--out", path)
        assert done.returncode == 2 and everything(tmp_path) == before
        assert (
            only_message(done.stderr)
            == f"--out: {path} is there already and is no sheet of kdray preview; give another path"
        )


# Runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher_weights) -> Path:
    """A run of 40 images, and two rounds of 60 and 50 mixes and a sample of 10; answers have two decimals."""
    config = digits_config(teacher_weights, student__epochs=1, teacher__decimals=2)
    config["select"] = {"strategy": "rad", "rounds": 2, "m": "estimate", "estimate_queries": 10}
    path = tmp_path_factory.mktemp("finished") / "run"
    run(parse_config(config), RunDirectory(path), local=True)
    return path


def of_run(path: Path, count: int, only: int | None = None) -> Preview:
    directory = RunDirectory(path)
    return preview_run(directory, load_config(directory.config), count, only)


def test_a_run_is_shown_round_by_round_with_its_answers(finished):
    preview = of_run(finished, 22)
    assert preview.what == "22 of 160 images bought in rounds 0 to 2"
    assert [shown.title for shown in preview.parts] == [
        "round 0, real images: 6 of 40 images",
        "round 1, for the estimate of m: 6 of 10 images",
        "round 1, rad: 5 of 50 images",
        "round 2, rad: 5 of 60 images",
    ]
    directory = RunDirectory(finished)
    for shown, (number, sample) in zip(preview.parts, [(0, False), (1, True), (1, False), (2, False)], strict=True):
        labelled = directory.read_labelled(number, 10, sample=sample)
        rows = [labelled.ids.tolist().index(key) for key in by_id(shown)]
        size, share = len(labelled), len(rows)
        assert rows == [k * size // share for k in range(share)], "spread evenly over the round"
        assert torch.equal(shown.images, labelled.images[rows])
        for row, caption in zip(rows, shown.captions, strict=True):
            probs = labelled.answers.probs[row]
            name, number_text = caption.said[0]
            assert int(name) == int(labelled.answers.labels[row]) and number_text == f"{float(probs.max()):.2f}"
            assert [text for _, text in caption.said] == [f"{float(p):.2f}" for p in probs.topk(3).values if p > 0]


def test_a_mix_that_was_bought_says_what_it_is_made_of(finished):
    (shown,) = of_run(finished, 7, 2).parts
    chosen = RunDirectory(finished).read_candidates(2)
    for key, caption in zip(by_id(shown), shown.captions, strict=True):
        row = chosen.ids.tolist().index(key)
        i, j, mix = (chosen.columns[name][row] for name in ("i", "j", "lambda"))
        assert caption.about == [(f"#{i} + #{j}", ""), (f"λ {mix:g}", f"id {key}")]


def test_the_command_shows_a_run_and_leaves_all_else_as_it_was(finished):
    before = everything(finished)
    done = command("preview", finished, "--round", 1, "--count", 8)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"8 of 60 images bought in round 1: {finished / 'preview.png'}\n"
    sheet = Image.open(finished / "preview.png")
    assert np.array_equal(pixels(sheet), pixels(contact_sheet(of_run(finished, 8, 1).parts)))
    (finished / "preview.png").unlink()
    assert everything(finished) == before


def test_the_pool_of_a_run_is_that_of_its_config(finished, tmp_path):
    paths = [tmp_path / "run.png", tmp_path / "config.png"]
    said = [
        command("preview", *arguments, "--count", 5, "--out", path).stdout
        for path, arguments in zip(paths, [(finished, "--pool"), (finished / "config.yaml",)], strict=True)
    ]
    assert said[0] == f"5 of 2,340 candidates, drawn at random: {paths[0]}\n"
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_of_hard_answers_the_label_alone_is_shown(make_config, tmp_path):
    config = make_config(teacher__answers="hard", select__rounds=1, budget__queries=44, student__epochs=1)
    run(config, RunDirectory(tmp_path / "run"), local=True)
    (shown,) = of_run(tmp_path / "run", 64, 1).parts
    labels = RunDirectory(tmp_path / "run").read_labelled(1, 10).answers.labels.tolist()
    assert [caption.said for caption in shown.captions] == [[(str(label), "")] for label in labels]


def test_a_run_that_was_stopped_shows_the_rounds_that_have_answers(finished, tmp_path):
    path = copy_run(finished, tmp_path / "run")
    for name in ("rounds/002/labelled.parquet", "rounds/001/student.safetensors", "student.safetensors"):
        (path / name).unlink()
    assert of_run(path, 4).what == "4 of 100 images bought in rounds 0 to 1"
    go_on = f"go on with: kdray resume {path}"
    (path / "rounds/002/candidates.parquet").unlink()
    done = command("preview", path, "--round", 2)
    assert only_message(done.stderr) == f"--round: round 2 of {path} has no answers yet; {go_on}"
    shutil.rmtree(path / "rounds")
    done = command("preview", path)
    assert done.returncode == 2 and only_message(done.stderr) == f"{path} has bought no images; {go_on}"


@pytest.mark.parametrize("number", [0, 2], ids=("images", "candidates"))
def test_what_a_round_has_chosen_is_shown_before_it_is_asked_about(finished, tmp_path, number):
    path = copy_run(finished, tmp_path / "run")
    bought = RunDirectory(path).read_labelled(number, 10).images
    for name in (f"rounds/{number:03}/labelled.parquet", f"rounds/{number:03}/student.safetensors"):
        (path / name).unlink()
    (shown,) = preview_choice(RunDirectory(path), load_config(path / "config.yaml"), number, len(bought) // 2).parts
    assert torch.equal(shown.images, bought[::2]) and not any(caption.said for caption in shown.captions)
    done = command("preview", path, "--round", number, "--count", 5)
    said = f"5 of {len(bought)} images that round {number} has chosen and not asked about: {path / 'preview.png'}"
    assert (done.returncode, done.stdout.strip()) == (0, said), done.stderr


def test_a_generator_is_shown_as_the_newest_round_has_trained_it(make_config, tmp_path):
    config = make_config(
        pool={"kind": "generator", "steps": 1, "batch": 10},
        select={"strategy": "random", "first": 10, "rounds": 2, "per_round": 10},
        budget__queries=30,
        student__epochs=1,
    )
    path = tmp_path / "run"
    before = preview_pool(config, 6)
    done = run(config, RunDirectory(path), local=True)
    config = load_config(path / "config.yaml")
    after = preview_pool(config, 10, RunDirectory(path))
    assert after.what == "10 of 10 candidates that round 2 makes, drawn at random"
    bought = done.labelled[2].images
    assert sorted(map(bytes, after.parts[0].images.numpy())) == sorted(map(bytes, bought.numpy()))
    assert "from before there is a student" in before.what
    (path / "rounds/002/labelled.parquet").unlink()
    (shown,) = preview_choice(RunDirectory(path), config, 2, 10).parts
    assert torch.equal(shown.images, bought)


def test_some_rows_of_a_file_come_back_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_ROW_GROUP", 5)
    generator, path = torch.Generator().manual_seed(0), tmp_path / "l.parquet"
    images = torch.randint(0, 256, (23, 3, 9, 7), generator=generator, dtype=torch.uint8)
    probs = torch.rand(23, 3, generator=generator).softmax(dim=1)
    answered = Answers(probs=probs, labels=torch.arange(23) % 3, num_classes=3)
    source = tuple(map(str, range(23)))
    tables.write_labelled(path, Labelled(images=images, answers=answered, ids=np.arange(23) * 7, source=source), None)
    assert pq.ParquetFile(path).num_row_groups == 5
    for rows in ([0], [4, 5, 22], [3, 12], list(range(23))):
        back = tables.read_rows(path, 3, np.array(rows))
        assert back.ids.tolist() == [7 * row for row in rows] and back.source == tuple(map(str, rows))
        assert torch.equal(back.images, images[rows]) and torch.equal(back.answers.probs, probs[rows])
        assert back.answers.labels.tolist() == [row % 3 for row in rows]
    assert len(tables.read_rows(path, 3, np.empty(0, np.int64))) == 0
    assert tables.read_classes(path) == ("0", "1", "2")


# Whole groups


def test_a_row_is_a_pair_at_every_lambda(make_config):
    config = make_config()
    whole, preview = read_pool(config).pool, groups_of_pool(config, 20)
    lambdas = whole.lambdas
    rows = 20 // len(lambdas)
    assert len(preview.parts) == rows and preview.what == f"{rows} of 780 groups, drawn at random"
    for shown in preview.parts:
        ids = by_id(shown)
        assert ids == [ids[0] + k for k in range(len(lambdas))] and ids[0] % len(lambdas) == 0
        assert torch.equal(shown.images, whole.render(torch.tensor(ids)))
        assert [caption.about[0][0] for caption in shown.captions] == [f"λ {one:g}" for one in lambdas]
        i, j = whole.pair(torch.tensor(ids[:1]) // len(lambdas))
        assert shown.title == f"mixup #{int(i)} + #{int(j)}"
    (one,) = groups_of_pool(config, 1).parts
    assert len(one.images) == len(lambdas), "one group at least"
    assert by_id(one) == by_id(preview.parts[0])


def test_groups_of_kinds_have_the_ids_of_a_run(make_config):
    kinds = ["lines", {"kind": "mixup", "lambdas": [0.3, 0.5]}, {"kind": "pairs", "blend": "cutmix"}]
    config = make_config(pool={"kind": "auto", "of": kinds})
    whole, preview = read_pool(config).pool, groups_of_pool(config, 64)
    assert [shown.title.partition(" ")[0] for shown in preview.parts[:: len(preview.parts) - 1]] == ["mixup", "cutmix"]
    for shown in preview.parts:
        assert torch.equal(shown.images, whole.render(torch.tensor(by_id(shown))))


def test_groups_of_a_run_have_the_teachers_answers_in_black_and_the_students_in_grey(finished):
    directory = RunDirectory(finished)
    config = load_config(directory.config)
    size, student = read_pool(config).pool.group_size, load_student(finished / "student.safetensors")
    bought, groups = {}, set()
    for number in (1, 2):
        for sample in (False, True) if directory.has_sample(number) else (False,):
            labelled = directory.read_labelled(number, 10, sample=sample)
            for row, key in enumerate(labelled.ids.tolist()):
                bought[key] = answer_lines(labelled.answers, row, [str(label) for label in range(10)])
                groups |= {key // size} if number == 2 else set()
    preview = groups_of_run(directory, config, 4 * size, 2)
    assert preview.what == f"4 of {len(groups)} groups of which a candidate was bought"
    for shown in preview.parts:
        ids, probs = by_id(shown), predict(student, shown.images)
        assert len(ids) == size and ids[0] // size in groups
        for row, (key, caption) in enumerate(zip(ids, shown.captions, strict=True)):
            assert list(caption.said) == bought.get(key, [])
            assert caption.about[0] == (str(int(probs[row].argmax())), f"{float(probs[row].max()):.2f}")
        assert any(caption.said for caption in shown.captions)


def test_the_command_draws_a_row_a_group(finished, tmp_path):
    size = read_pool(load_config(finished / "config.yaml")).pool.group_size
    for arguments, parts in (
        ((), groups_of_run(RunDirectory(finished), load_config(finished / "config.yaml"), 30)),
        (("--pool",), groups_of_pool(load_config(finished / "config.yaml"), 30)),
    ):
        done = command("preview", finished, "--groups", "--count", 30, *arguments, "--out", tmp_path / "a.png")
        assert done.returncode == 0, done.stderr
        assert np.array_equal(pixels(Image.open(tmp_path / "a.png")), pixels(contact_sheet(parts.parts, size)))


def test_without_groups_of_several_there_is_no_such_sheet(make_config, tmp_path):
    config = make_config(pool={"kind": "lines", "candidates": 500}, student__epochs=1, select__rounds=1)
    with pytest.raises(ConfigError, match="--groups: every candidate of a pool of lines is a group of its own"):
        groups_of_pool(config, 8)
    config = make_config(student__epochs=1, select={"first": 40, "rounds": 0}, budget__queries=40)
    run(config, RunDirectory(tmp_path / "run"), local=True)
    with pytest.raises(RunDirectoryError, match="has bought no candidate of a group; leave --groups out"):
        groups_of_run(RunDirectory(tmp_path / "run"), config, 8)


# Mistakes

MISTAKES = [
    (["{run}", "--round", "3"], "--round: {run} has no round 3, only 0 to 2; give another one"),
    (["{run}", "--round=-1"], "--round: {run} has no round -1, only 0 to 2; give another one"),
    (
        ["{run}", "seed=1"],
        "override 'seed=1': the config of a run is fixed; leave it out, or preview its config with it: kdray preview "
        "{run}/config.yaml seed=1",
    ),
    (["{run}", "--pool", "--round", "1"], "--round 1 shows what a run bought, --pool what it chooses from; give one"),
    (["{run}", "--out", "{run}/log.txt"], "--out: {run}/log.txt is not the name of a PNG file; let it end in .png"),
    (["{config}", "--round", "0"], "--round is for a run, and {config} is a file; leave it out"),
    (["{config}", "--pool"], "--pool is for a run, and {config} is a file; leave it out"),
    (["{config}", "--count", "0"], "--count: got 0; give a number from 1 to 1,000"),
    (["{config}", "--count", "1001"], "--count: got 1,001; give a number from 1 to 1,000"),
    (["{config}", "--columns", "0"], "--columns: got 0; give a number from 1 to 1,000"),
    (["{config}", "--out", "sheet.jpg"], "--out: sheet.jpg is not the name of a PNG file; let it end in .png"),
    (
        ["{config}", "--out", "{config}/a.png"],
        "--out: cannot write {config}/a.png: {config} is not a folder; give another path",
    ),
    (["{config}", "--out", "f.png"], "--out: cannot write f.png: f.png is a folder; give another path"),
    (["{config}", "sed=1"], "{config}: unknown key 'sed'; did you mean 'seed'?"),
    (["{config}", "images.count=1"], "a mixup pool needs at least two images to mix, got 1; give more (images.count)"),
    (["nowhere"], "nowhere is not there; give a config's YAML file, or a run directory"),
    (["f.png"], "f.png is a folder that holds no run; give a config's YAML file, or a run directory"),
    (["sweep"], "sweep is a sweep; give one of its runs, which are sweep/trials/NAME/seed-N"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_gets_one_message_and_nothing_is_written(arguments, message, finished, teacher_weights, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(digits_config(teacher_weights)))
    (tmp_path / "f.png").mkdir()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.yaml").touch()
    names = {"run": finished, "config": config}
    before = everything(tmp_path), everything(finished)
    done = command("preview", *(word.format(**names) for word in arguments), cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert only_message(done.stderr) == message.format(**names)
    assert (everything(tmp_path), everything(finished)) == before
