"""Steps that are recorded on a GPU: what may be recorded, and that rates and shares may be tensors.

Recording itself needs a GPU: `python benchmarks/gpu.py check` compares it with training step by step.
"""

import gc
import weakref

import pytest
import torch
from torch import nn

from kdray.models.classifier import build_model
from kdray.training import loop
from kdray.training.augment.affine import Affine
from kdray.training.descent import Descent, MovingAverage
from kdray.training.loop import train
from kdray.training.losses.cross_entropy import CrossEntropy, soft_cross_entropy
from kdray.training.recipe import StudentSection
from kdray.training.replay import can_replay, own_stream

GPU, CPU = torch.device("cuda"), torch.device("cpu")


class OwnLayer(nn.Module):
    """Of a user: may do something else each time."""

    def forward(self, x):
        return x


class OwnAugment(Affine):
    pass


class OwnLoss(CrossEntropy):
    pass


def recipe(**fields) -> StudentSection:
    return StudentSection(**{"steps": 6, "batch_size": 4, "augment": "none", **fields})


def network(name="lenet5") -> nn.Module:
    return build_model(name, (1, 28, 28), 3, seed=0)


def test_only_a_gpu_that_runs_nothing_but_kdrays_and_torchs_code_is_recorded():
    assert can_replay(network(), recipe(), GPU)
    assert can_replay(network("torchvision:resnet18"), recipe(augment="affine", loss={"kind": "mix-kd"}), GPU)
    assert can_replay(network(), recipe(balance="equal"), GPU)
    assert not can_replay(network(), recipe(), CPU)
    assert not can_replay(nn.Sequential(network(), OwnLayer()), recipe(), GPU)
    own = {"augment": OwnAugment(), "loss": OwnLoss()}
    for name, value in own.items():
        assert not can_replay(network(), recipe().model_copy(update={name: value}), GPU), name


@pytest.mark.parametrize("fields", [{"optimizer": "adamw"}, {"compile": True}, {"cuda_graphs": False}])
def test_what_cannot_be_recorded_or_must_not_be_is_trained_step_by_step(fields):
    assert not can_replay(network(), recipe(**fields), GPU)


@pytest.mark.parametrize("way", ["alike", "gradients lie another way"])
def test_a_rate_that_is_a_tensor_moves_the_weights_as_far(way):
    models = [network("small-cnn").to(memory_format=torch.channels_last) for _ in range(2)]
    descents = [Descent(model, recipe()) for model in models]
    generator = torch.Generator().manual_seed(0)
    for rate in (0.1, 0.05, 0.2):
        images = torch.randint(0, 256, (8, 1, 28, 28), generator=generator, dtype=torch.uint8)
        targets = torch.randn(8, 3, generator=generator).softmax(dim=1)
        for model in models:
            soft_cross_entropy(model(images), targets).backward()
            for parameter in model.parameters() if way != "alike" else ():
                parameter.grad = parameter.grad.contiguous()
        for descent, given in zip(descents, (rate, torch.tensor(rate)), strict=True):
            descent.step(given)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert a.stride() == b.stride()


def test_a_share_that_is_a_tensor_averages_as_much():
    layers = [nn.Linear(3, 2), nn.Linear(3, 2)]
    layers[1].load_state_dict(layers[0].state_dict())
    averages = [MovingAverage(layer, 0.9) for layer in layers]
    for value in (4.0, -2.0, 3.0):
        for layer in layers:
            nn.init.constant_(layer.weight, value)
        averages[0].update()
        averages[1].update(torch.tensor(averages[1].next_share()))
    for a, b in zip(averages[0].averages, averages[1].averages, strict=True):
        torch.testing.assert_close(a, b)


def test_a_cpu_has_no_stream_of_its_own():
    with own_stream(CPU):
        assert not torch.cuda.is_initialized()


def test_a_training_that_is_over_is_gone_at_once(monkeypatch):
    """Not only when Python collects garbage: it holds the images, and on a GPU its recordings."""
    alive, made = [], loop._Training.__init__

    def watched(self, *args, **kwargs):
        alive.append(weakref.ref(self))
        made(self, *args, **kwargs)

    monkeypatch.setattr(loop._Training, "__init__", watched)
    gc.collect()
    gc.disable()
    try:
        images = torch.randint(0, 256, (8, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        train(network(), images, torch.eye(3)[torch.arange(8) % 3], recipe(), seed=0)
        assert [one() for one in alive] == [None]
    finally:
        gc.enable()
