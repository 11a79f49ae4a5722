"""Large images on their way to Ray's workers: mapped from the driver's file, or fetched from another machine."""

import gc

import numpy as np
import pytest
import torch
from conftest import actor_pids
from test_stored import KIB, pictures

from actors.parcels import Parcel, fetch, pack, pack_images, unpack
from actors.scoring import RaySearcher
from actors.students import RayTrainer
from kdray.errors import ScoringError
from kdray.models.checkpoint import ModelCard
from kdray.models.classifier import build_model
from kdray.pools.mixup import MixupPool
from kdray.search import SearchRequest
from kdray.search.local import LocalSearcher
from kdray.search.values import FeaturesRequest
from kdray.training.recipe import Recipe
from kdray.training.trainer import LocalTrainer, StudentSpec
from kdray.utils import stored
from kdray.utils.stored import SharedFile, gathered, is_stored

SHAPE = (3, 16, 16)


@pytest.fixture
def images(monkeypatch) -> torch.Tensor:
    """Forty images in a file."""
    monkeypatch.setattr(stored, "IN_MEMORY", KIB)
    return gathered([pictures(40, SHAPE).numpy()], 40)


def test_a_parcel_holds_files_and_not_their_images(ray_local, images):
    pool = MixupPool(images, [0.3, 0.5])
    array = np.arange(10_000)
    parcel = pack((pool, images[3:5], pictures(2), array))
    assert isinstance(parcel, Parcel) and len(parcel.content) < 4 * KIB and len(parcel.files) == 2
    for sent in (parcel, ray_local.get(ray_local.put(parcel))):
        back, few, plain, numbers = unpack(sent)
        assert np.array_equal(numbers, array)
    assert is_stored(back.images) and torch.equal(back.images, images) and torch.equal(few, images[3:5])
    assert torch.equal(plain, pictures(2)) and torch.equal(back.render(torch.arange(9)), pool.render(torch.arange(9)))
    assert torch.equal(unpack(pack_images(images)), images)
    assert torch.equal(unpack(pack_images(pictures(3))), pictures(3))
    small = MixupPool(pictures(4), [0.5])
    assert pack(small) is small, "it goes as it is"


@pytest.mark.storm
def test_workers_search_a_pool_in_a_file_as_one_process_does(ray_local, images):
    pool, model = MixupPool(images, [0.3, 0.5]), build_model("small-cnn", SHAPE, 3, seed=0)
    searcher = RaySearcher(1, chunk=200)
    try:
        for request in (SearchRequest(k=30), FeaturesRequest(images=images[:20])):
            here = LocalSearcher(chunk=200).search(pool, model, request)
            there = searcher.search(pool, model, request)
            for name in {"ids", "scores", "rows"} & vars(here).keys():
                assert (getattr(here, name) == getattr(there, name)).all()
    finally:
        searcher.close()


@pytest.mark.storm  # small: `unpack` above
def test_a_worker_of_another_machine_gets_the_images_through_the_object_store(ray_local, images, monkeypatch):
    monkeypatch.setattr(stored, "_PART", 7 * 3 * 16 * 16)  # six parts
    file, node = SharedFile.of(images[1:]), ray_local.get_runtime_context().get_node_id()
    for _ in range(2):  # by the same keeper
        fetched = fetch(file, node)
        assert torch.equal(fetched, images[1:]) and is_stored(fetched)
        assert len(actor_pids("ImageKeeper")) == 1
    gone = SharedFile(**{**vars(file), "file": (0, 0, 0)})
    with pytest.raises(ScoringError, match=r"do not arrive from the driver's node \(the file is gone\); look at 'ray"):
        fetch(gone, node)
    del fetched
    gc.collect()


@pytest.mark.storm  # small: `pack_images` above
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_student_is_trained_in_workers_on_images_in_a_file(workers, ray_local, images):
    spec = StudentSpec(
        card=ModelCard(model="small-cnn", image_shape=SHAPE, num_classes=3),
        mean=[0.5] * 3,
        std=[0.2] * 3,
        recipe=Recipe(epochs=2, batch_size=8, device="cpu"),
        seed=0,
        threads=1,
    )
    targets = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    trainer = RayTrainer(spec, workers=workers)
    try:
        content, result = trainer.fit(images, targets, 0)
    finally:
        trainer.close()
    expected, local = LocalTrainer(spec).fit(images, targets, 0)
    assert content == expected or workers == 2
    assert result.losses == pytest.approx(local.losses, rel=1e-4)
