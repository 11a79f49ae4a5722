"""`kdray bench`: it measures, and says what it cannot."""

import re
from dataclasses import replace

import pytest
import torch
from conftest import command

from kdray.errors import ConfigError
from kdray.runs.bench import Setting, Speed, _search, bare, lines, parse_pool, parse_shape
from kdray.search.local import LocalSearcher


@pytest.mark.storm
def test_a_measurement_of_one_worker(ray_local, tmp_path):
    threads = torch.get_num_threads()
    done = command(
        *("bench", "score", "--model", "small-cnn", "--shape", "1x8x8", "--images", "40", "--workers", "1"),
        *("--seconds", "0.2", "--repeats", "1"),
        cwd=tmp_path,
    )
    torch.set_num_threads(threads)
    assert done.returncode == 0, done.stderr
    assert "1 worker" in done.stdout and "of the bare forward pass" in done.stdout and "MiB a worker" in done.stdout
    assert "scaling" not in done.stdout
    assert "1 of 1" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "lenet"], "kdray: no model named 'lenet'; did you mean 'lenet5'?"),
        (["--shape", "28x28"], "kdray: --shape: '28x28' is not CxHxW; give channels, height and width"),
        (["--shape", "1x4x4"], "kdray: lenet5 needs images of at least 16x16"),
        (["--images", "1"], "kdray: --images: a pool needs at least two images to mix, got 1"),
        (["--workers", "0"], "--workers"),
        (["--precision", "int8"], "--precision"),
        (["--pool", "images"], "kdray: --pool: images is not a pool of pairs of images; give one of mixup, pairs"),
        (["--pool", "{kind: pairs, blend: cut}"], "kdray: --pool: pool.blend.kind: 'cut' is not one of 'cutmix', "),
    ],
)
def test_what_cannot_be_measured(arguments, message, tmp_path):
    done = command("bench", "score", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_shapes():
    assert parse_shape("3x32x32") == (3, 32, 32)
    for text in ("", "3x32", "3x32x0", "axbxc", "3x32x32x1", "-1x2x3"):
        with pytest.raises(ConfigError, match="is not CxHxW"):
            parse_shape(text)


def test_any_pool_of_pairs_can_be_measured():
    setting = Setting(images=40, shape=(1, 8, 8), pool=parse_pool("{kind: pairs, blend: cutline, draws: 3}"))
    searched = []

    class Counted(LocalSearcher):
        def search(self, pool, model, request):
            searched.append((len(pool), pool.source, request.k))
            return super().search(pool, model, request)

    for candidates in (300, 1e9):
        assert _search(replace(setting, model="small-cnn"), Counted(), candidates) > 0
    assert searched == [(300, "cutline", 1), (780 * 3, "cutline", 7)]
    assert dict(lines(setting, []))["pool"] == "pairs: cutline" and "pool" not in dict(lines(Setting(), []))


def test_the_bare_rate_counts_whole_rounds_of_batches():
    rate = bare(Setting(model="small-cnn", images=10, shape=(1, 8, 8)), 0.05)
    assert rate > 0


def test_the_lines_by_hand():
    speeds = [
        Speed(workers=1, candidates_per_s=900, bare_per_s=1000, share=0.9, driver_mib=600, worker_mib=500),
        Speed(workers=2, candidates_per_s=1710, bare_per_s=1800, share=0.95, driver_mib=601, worker_mib=502),
    ]
    said = dict(lines(Setting(repeats=3), speeds))
    assert said["1 worker"].startswith("900 candidates/s, 90.0% of 1,000 of the bare forward pass; memory 600 MiB")
    assert said["2 workers"].startswith("1,710 candidates/s, 95.0% of 1,800")
    assert said["scaling"] == "1.90 times as fast with 2 workers as with one"


def test_a_training_rate_is_a_share_of_the_bare_loop(tmp_path):
    arguments = ("--model", "small-cnn", "--shape", "1x8x8", "--seconds", "0.2", "--repeats", "1", "--batch-size", "16")
    done = command("bench", "train", *arguments, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = re.search(r"training +([\d,]+) images/s, ([\d.]+)% of ([\d,]+) of a bare loop", done.stdout)
    assert found, done.stdout
    rate, share, limit = (float(text.replace(",", "")) for text in found.groups())
    assert rate / limit == pytest.approx(share / 100, rel=0.01)
    assert "small-cnn at 1x8x8, batches of 16, augmentation affine" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--augment", "elstic"), "'elstic' is not one of"),
        (("--shape", "1x2x2", "--augment", "standard"), "augment.shift: 4 pixels do not fit images of 2x2"),
        (("--model", "lenet6"), "no model named 'lenet6'; did you mean 'lenet5'"),
    ],
)
def test_what_cannot_be_trained_gets_one_message(arguments, message, tmp_path):
    done = command("bench", "train", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
