"""Networks that generate images. Each takes a code, float [B, D], and gives images float [B, C, H, W] in [0, 1].

IDEAL's Table 6 compares a small, a medium and a large one: dcgan, stylegan and transformer.
"""

import torch
from torch import nn

from kdray.generate.networks.dcgan import DCGAN
from kdray.generate.networks.stylegan import StyleGAN
from kdray.generate.networks.transformer import Transformer

GENERATORS: dict[str, type[nn.Module]] = {"dcgan": DCGAN, "stylegan": StyleGAN, "transformer": Transformer}
"""All networks by name. Each is built from the length D of its codes and the shape (C, H, W) of its images."""


def build_generator(name: str, code: int, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
    """A generator with fresh weights, the same for the same seed; the global random state does not change.

    Args:
        name: a key of `GENERATORS`.
        code: D, length of the codes.
        image_shape: (C, H, W), any.
        seed: of the weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GENERATORS[name](code, image_shape)
