"""One student trained by several processes: the same steps as in one, whoever computes which rows."""

import os
import pickle
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from conftest import actor_pids, digits_config
from hypothesis import given
from hypothesis import strategies as st
from processes import processes
from safetensors.torch import load
from torch import nn

from kdray.config.load import parse_config
from kdray.errors import ConfigError, ScoringError
from kdray.models.checkpoint import ModelCard
from kdray.models.classifier import build_model
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run
from kdray.sweeps.config import parse_sweep
from kdray.training.augment import Crop, Draw, augments
from kdray.training.distributed import ProcessShard, share_statistics
from kdray.training.fitting import StudentSpec, fit
from kdray.training.length import length
from kdray.training.loop import TrainResult, train
from kdray.training.recipe import EarlyStop, Recipe
from kdray.training.shard import Shard
from kdray.training.trainer import LocalTrainer

# One pair of processes for all; those with a Ray are in the group of Ray all the same.
pytestmark = pytest.mark.xdist_group("shards")
assert processes.get_start_method() == "forkserver"

# Sums in another order differ in the last of 24 bits; 25 steps and batch normalisation enlarge that.
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
SHAPE = (1, 16, 16)


def labelled(count: int = 83) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise: images and soft answers. 83 images make batches of 13 and 14, which two processes cannot share evenly."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *SHAPE), generator=generator, dtype=torch.uint8)
    return images, torch.randn(count, 3, generator=generator).softmax(dim=1)


def spec(model: str = "small-cnn", **changes) -> StudentSpec:
    recipe = Recipe(
        **{"epochs": 4, "batch_size": 16, "lr": 0.01, "device": "cpu", "augment": Crop(shift=2, flip=True), **changes}
    )
    card = ModelCard(model=model, image_shape=SHAPE, num_classes=3)
    return StudentSpec(card=card, mean=[0.5], std=[0.2], recipe=recipe, seed=5, threads=1)


SPECS = {
    "batch normalisation": spec(),
    "none": spec("lenet5"),
    "early stop": spec(epochs=30, early_stop=EarlyStop(holdout=0.2, patience=3)),
    "one image each": spec(batch_size=2, epochs=1),
    "killed once": spec("lenet5", epochs=80),
    "balance": spec(balance="equal"),
}


def check_alike(one: tuple[bytes, TrainResult], several: tuple[bytes, TrainResult]) -> None:
    weights, others = load(one[0]), load(several[0])
    assert sorted(weights) == sorted(others)
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(several[1].losses, one[1].losses, **CLOSE)
    torch.testing.assert_close(several[1].holdout_losses, one[1].holdout_losses, **CLOSE)
    assert several[1].best_epoch == one[1].best_epoch


# Without processes


@given(st.integers(0, 99), st.integers(1, 9))
def test_each_row_belongs_to_one_process_and_weights_make_the_mean(count, size):
    shards = []
    for rank in range(size):
        shards.append(Shard())
        shards[-1].rank, shards[-1].size = rank, size
    rows = [list(range(count))[shard.rows(count)] for shard in shards]
    assert [row for part in rows for row in part] == list(range(count))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
    if count >= size:
        means = [sum(part) / len(part) for part in rows]
        weighted = [
            mean * shard.weight(len(part), count) for mean, shard, part in zip(means, shards, rows, strict=True)
        ]
        assert sum(weighted) / size == pytest.approx(sum(range(count)) / count)


@pytest.mark.parametrize(("first", "stop"), [(0, 4), (4, 9), (8, 9)])
def test_rows_of_a_batch_are_changed_as_in_the_whole_batch(first, stop):
    images, rows = labelled(9)[0], slice(first, stop)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    whole, part = Draw.whole(generators[0], 9), Draw(generators[1], rows, 9)
    for name in augments.parts():
        if name == "auto":
            continue
        change = augments.parse(name)
        changed = change(images, whole)
        assert torch.equal(change(images[rows], part), changed[rows]), name
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


@pytest.mark.parametrize(
    ("count", "changes", "smallest"),
    [
        (83, {"batch_size": 16}, 13),
        (64, {"batch_size": 64}, 64),
        (5, {"batch_size": 2}, 2),
        (1, {"batch_size": 8}, 1),
        (10, {"batch_size": 64, "early_stop": EarlyStop(holdout=0.3)}, 7),
    ],
)
def test_the_smallest_batch_is_that_of_training(count, changes, smallest):
    recipe = Recipe(device="cpu", epochs=1, **changes)
    assert length(recipe, count).smallest_batch == smallest
    seen = []
    model = build_model("lenet5", SHAPE, 3, seed=0)
    model.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])) if module.training else None)
    train(model, *labelled(count), recipe, seed=0, threads=1)
    assert min(seen) == smallest


# Two processes with gloo


def work(rank: int, size: int, folder: str) -> None:
    """What one of `size` processes finds with dropout, and what its batch normalisation gives."""
    join(rank, size, folder)
    masked = Masked()
    losses = train(masked, *labelled(), spec().recipe, seed=0, threads=1, shard=ProcessShard()).losses
    found = {"dropout": (losses, masked.state_dict(), masked.kept)}
    network, x = normalising()
    share_statistics(network)
    part = x[ProcessShard().rows(len(x))].clone().requires_grad_()
    given = [network(part), network(part)]
    weighed(given[-1], ProcessShard().rows(len(x))).backward()
    found["norm"] = (given[-1].detach(), part.grad, network.state_dict())
    layer = nn.Sequential(nn.BatchNorm2d(4))
    share_statistics(layer)
    found["bfloat16"] = layer(x.bfloat16()[ProcessShard().rows(len(x))]).detach(), layer.state_dict()
    leave(rank, folder, found)


def train_all(rank: int, size: int, folder: str) -> None:
    """The students that one of `size` processes trains."""
    join(rank, size, folder)
    names = [name for name in SPECS if name != "killed once"]
    leave(rank, folder, {name: fit(SPECS[name], *labelled(), 2, None, ProcessShard()) for name in names})


def join(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)


def leave(rank: int, folder: str, found: dict) -> None:
    Path(folder, str(rank)).write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


class Masked(nn.Module):
    """A linear network with dropout that writes down the first mask."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.kept = nn.Linear(256, 3), []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        dropped = nn.functional.dropout(x.flatten(1).float() / 255 + 1, 0.5, self.training)
        self.kept = self.kept or (dropped[0] > 0).tolist()
        return self.linear(dropped)


def normalising() -> tuple[nn.Module, torch.Tensor]:
    """A batch normalisation in a module, and a batch with a mean far from 0."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False, momentum=None))
    return network, 100 + torch.randn(7, 4, 3, 2, generator=generator)


def weighed(output: torch.Tensor, rows: slice) -> torch.Tensor:
    """A loss that treats every element differently."""
    factors = torch.randn(7, 4, 3, 2, generator=torch.Generator().manual_seed(1))
    return (output.square() * factors[rows]).sum()


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> list[dict]:
    """What each of two processes found."""
    return of_two(work, tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def students(tmp_path_factory) -> list[dict]:
    """The students of each of two processes."""
    return of_two(train_all, tmp_path_factory.mktemp("students"))


def of_two(work, folder: Path) -> list[dict]:
    # From the fork server of `processes`, which has imported torch.
    torch.multiprocessing.start_processes(work, (2, str(folder)), nprocs=2, start_method="forkserver")
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(2)]


@pytest.mark.storm
@pytest.mark.parametrize("name", [name for name in SPECS if name != "killed once"])
def test_two_processes_train_the_student_of_one(name, students):
    check_alike(LocalTrainer(SPECS[name]).fit(*labelled(), 2), students[0][name])
    assert students[0][name] == students[1][name], "to the bit"


def test_dropout_differs_between_processes_and_their_students_do_not(pair):
    (losses, weights, kept), (others, copies, left) = (found["dropout"] for found in pair)
    assert losses == others
    assert all(torch.equal(weights[name], copies[name]) for name in weights)
    assert kept != left


def test_batch_normalisation_sees_the_whole_batch(pair):
    network, x = normalising()
    x.requires_grad_()
    given = [network(x), network(x)]
    weighed(given[-1], slice(None)).backward()
    outputs, gradients = (torch.cat([found["norm"][k] for found in pair]) for k in (0, 1))
    torch.testing.assert_close(outputs, given[-1].detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients, x.grad, rtol=1e-4, atol=1e-4)
    for found in pair:
        torch.testing.assert_close(found["norm"][2], network.state_dict(), rtol=1e-5, atol=1e-4)


def test_its_sums_have_all_digits_in_bfloat16(pair):
    layer, x = nn.BatchNorm2d(4), normalising()[1].bfloat16()
    expected = layer(x).detach()
    torch.testing.assert_close(torch.cat([found["bfloat16"][0] for found in pair]), expected, rtol=0.01, atol=0.01)
    for found in pair:
        state = {name.removeprefix("0."): value for name, value in found["bfloat16"][1].items()}
        torch.testing.assert_close(state, dict(layer.state_dict()), rtol=1e-5, atol=1e-4)


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resources__trainer__where": "driver"}, "trainer.where is driver, which is one process; set where to worker"),
        ({"resources__trainer__gpus": 0.5}, "each of 2 training workers uses one GPU or none; set gpus to 0 or 1"),
        ({"student__batch_size": 1}, "student.batch_size is 1: each worker needs an image of every batch"),
        ({"student__device": "cuda:1"}, "set student.device to auto, and resources.trainer.gpus to 1 for GPUs"),
        ({"student__device": "cuda"}, "set student.device to auto, and resources.trainer.gpus to 1 for GPUs"),
    ],
)
def test_what_several_training_workers_cannot_do_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(digits_config("x", **changes, resources__trainer__workers=2))


def test_several_training_workers_need_ray_and_that_is_said_before_anything_is_done(tmp_path):
    config = parse_config(digits_config("x", resources__trainer__workers=2))
    with pytest.raises(ConfigError, match=r"trainer.workers is 2, which needs Ray; run without --local"):
        run(config, RunDirectory(tmp_path / "run"), local=True)
    assert not (tmp_path / "run").exists()


def test_a_sweep_trains_each_student_in_one_process():
    data = {"base": digits_config("x"), "space": {"budget.queries": {"grid": [40]}}}
    with pytest.raises(ConfigError, match=r"base.resources.trainer.workers is 2, but each trial of a sweep trains"):
        parse_sweep(data, ["base.resources.trainer.workers=2"]).config_of({})
    data["space"] = {"resources.trainer.workers": {"grid": [1, 2]}}
    with pytest.raises(ConfigError, match=r"resources.trainer.workers is fixed in a sweep"):
        parse_sweep(data)


# Ray Train


def trained_on_workers(some: StudentSpec, on_epoch=None, answers=83, **options) -> tuple[bytes, TrainResult]:
    from actors.students import RayTrainer

    trainer, (images, targets) = RayTrainer(some, workers=2, **options), labelled()
    try:
        return trainer.fit(images, targets[:answers], 2, on_epoch)
    finally:
        trainer.close()


def none_left() -> None:
    """Wait until no process of a training group is left."""
    deadline = time.monotonic() + 60
    while any(actor_pids(kind) for kind in ("TrainingGroup", "TrainController", "RayTrainWorker")):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.storm
@pytest.mark.long
def test_two_workers_train_the_student_of_one_and_tell_each_epoch(ray_local):
    told = []
    one = LocalTrainer(SPECS["batch normalisation"]).fit(*labelled(), 2)
    several = trained_on_workers(SPECS["batch normalisation"], lambda done, of, loss: told.append((done, loss)))
    check_alike(one, several)
    assert [done for done, _ in told] == [1, 2, 3, 4]
    assert [round(loss, 6) for _, loss in told] == [round(loss, 6) for loss in several[1].losses]
    none_left()


@pytest.mark.storm
@pytest.mark.long
def test_a_worker_that_is_killed_costs_time_alone(ray_local, pair):
    killed = []

    def kill(done: int, of: int, loss: float) -> None:
        if done > 3 and not killed:
            killed.append(actor_pids("RayTrainWorker")[-1])
            os.kill(killed[0], signal.SIGKILL)

    disturbed = trained_on_workers(SPECS["killed once"], kill)
    assert killed and disturbed == pair[0]["killed once"], "to the bit"
    none_left()


@pytest.mark.storm
@pytest.mark.long
@pytest.mark.timeout(600)  # five starts of workers
def test_training_that_fails_everywhere_ends_with_the_reason(ray_local):
    with pytest.raises(ScoringError, match=r"training on 2 workers failed 3 times \(index out of range"):
        trained_on_workers(spec("lenet5"), answers=40)
    small = spec("lenet5", augment=Crop(shift=16))
    with pytest.raises(ConfigError, match="16 pixels do not fit"):
        trained_on_workers(small)
    with pytest.raises(ScoringError, match=r"2 training workers found no GPUs for 3 s; set resources.trainer.workers"):
        trained_on_workers(spec("lenet5", device="auto"), gpus=1, patience_s=3.0)
    none_left()
