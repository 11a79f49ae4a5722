"""A user's own generator: named as module:object, checked, and used like those of kdray."""

import re

import pytest
import torch

from kdray.errors import ConfigError, ModelError
from kdray.generate.base import build_generator
from kdray.generate.train import GeneratorRecipe, train_generator
from kdray.models.classifier import build_model
from kdray.runs.inputs import read_inputs

SHAPE = (1, 6, 5)
GENERATOR = """
import math
import torch
from torch import nn

class Dense(nn.Sequential):
    def __init__(self, code, image_shape):
        size = math.prod(image_shape)
        super().__init__(
            nn.Linear(code, size), nn.BatchNorm1d(size), nn.Dropout(0.5), nn.Sigmoid(), nn.Unflatten(1, image_shape)
        )

def flat(code, image_shape):
    return nn.Sequential(nn.Linear(code, 30), nn.Sigmoid())

def signed(code, image_shape):
    return nn.Sequential(nn.Linear(code, 30), nn.Tanh(), nn.Unflatten(1, image_shape))

def undefined(code, image_shape):
    layer = nn.Linear(code, 30)
    nn.init.constant_(layer.weight, float("nan"))
    return nn.Sequential(layer, nn.Sigmoid(), nn.Unflatten(1, image_shape))

def narrow(code, image_shape):
    return nn.Sequential(nn.Linear(code - 1, 30), nn.Sigmoid(), nn.Unflatten(1, image_shape))

def fixed(code, image_shape):
    return nn.Sequential(nn.Sigmoid(), nn.Unflatten(1, image_shape))

class Noisy(Dense):
    def __init__(self, code, image_shape, strength=1.0):
        super().__init__(code, image_shape)
        self.strength = nn.Parameter(torch.tensor(strength))

    def forward(self, codes):
        return super().forward(codes + self.strength * torch.randn_like(codes))

def noisy_later(code, image_shape):
    return Noisy(code, image_shape, strength=0.0)

def in_company(code, image_shape):
    generator = Dense(code, image_shape)
    generator[1] = nn.BatchNorm1d(generator[1].num_features, track_running_stats=False)
    return generator

class Pair(Dense):
    def forward(self, codes):
        return super().forward(codes), codes

def text(code, image_shape):
    return "a generator"

def nothing():
    pass

network = Dense(4, (1, 6, 5))
number = 3
"""


def test_a_generator_of_the_users_own_has_the_weights_of_its_seed(own):
    name = f"{own(GENERATOR)}:Dense"  # its module draws random numbers while it is imported
    made = build_generator(name, 4, SHAPE, seed=1)
    before = torch.get_rng_state()
    again, other = (build_generator(name, 4, SHAPE, seed) for seed in (1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert made.training and made[1].num_batches_tracked == 0, "a copy was tried, and the network is as it was made"
    weights = made[0].weight
    assert torch.equal(weights, again[0].weight) and not torch.equal(weights, other[0].weight)
    assert made(torch.zeros(3, 4)).shape == (3, *SHAPE)


def test_dropout_is_the_same_for_the_same_seed(own):
    name, student = f"{own(GENERATOR)}:Dense", build_model("lenet5", (1, 16, 16), 3, seed=0).eval()
    random = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    made = [build_generator(name, 7, (1, 16, 16), seed=0) for _ in random]
    before = torch.get_rng_state()
    losses = [
        train_generator(
            generator,
            student,
            GeneratorRecipe(steps=2, batch=6),
            classes=3,
            noise=4,
            conditional=True,
            random=one,
        )
        for generator, one in zip(made, random, strict=True)
    ]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_one_that_does_not_fit_the_images_is_refused_before_anything_is_paid(own, make_config):
    name = f"{own(GENERATOR)}:flat"
    config = make_config(pool={"kind": "generator", "network": name, "candidates": 20}, select={"strategy": "random"})
    with pytest.raises(ModelError, match=f"{name} gives torch.float32 "):
        read_inputs(config)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("flat", "gives torch.float32 [2, 30] for two codes; it must give float images [2, 1, 6, 5] in [0, 1]"),
        ("Pair", "gives tuple for two codes"),
        ("signed", "they must lie in [0, 1]: end it with a sigmoid"),
        ("undefined", "gives pixels from nan to nan"),
        ("Noisy", "gives another image each time for one code in eval mode; an image must follow from its code alone"),
        ("noisy_later", "gives another image each time for one code in eval mode"),
        (
            "in_company",
            "gives another image beside other codes, as batch normalisation without running statistics does,",
        ),
        ("narrow", "made a network that cannot take codes float [2, 4] (RuntimeError: "),
        ("fixed", "made a network that has no parameters to train"),
        ("text", "gave a str, not a torch.nn.Module"),
        ("nothing", "(4, (1, 6, 5)) failed (TypeError: "),
        ("network", "is a network already; name its class, or a function that makes one"),
    ],
)
def test_what_makes_no_generator_is_refused(own, function, message):
    name = f"{own(GENERATOR)}:{function}"
    with pytest.raises(ModelError, match=rf"^{name}.*{re.escape(message)}"):
        build_generator(name, 4, SHAPE, seed=0)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            "dcgam",
            r"no generator named 'dcgam'; did you mean 'dcgan'\? There are: dcgan, stylegan, transformer; and your",
        ),
        ("OWN:number", "no generator 'OWN:number': it is a int, not a class or a function of"),
        ("OWN:missing", r"no generator 'OWN:missing': cannot import OWN:missing \(AttributeError: "),
        ("no_such_module:Dense", r"cannot import no_such_module:Dense \(ModuleNotFoundError: "),
    ],
)
def test_what_is_no_generator_is_refused_with_the_config(own, network, message, make_config):
    name = own(GENERATOR)
    with pytest.raises(ConfigError, match=rf"pool\.network: .*{message.replace('OWN', name)}"):
        make_config(pool={"kind": "generator", "network": network.replace("OWN", name)})
