"""What a round's generator costs on a CPU, beside the plain way in the same run.

    python benchmarks/generator.py [--repeats 5]

A step of training and a batch of candidates of the network dcgan with the channels last, as kdray has them, and with
the channels first, as torch has them unasked; and the first training of a new process, with Adam by torch's function,
as in kdray, and as a torch.optim.Adam. All with one thread, the ways by turns; each ratio is that of two neighbours in
time. On a machine with nothing else to do.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from machine import ROOT, keep
from torch import Tensor

from kdray.generate.networks.dcgan import DCGAN
from kdray.generate.train import GeneratorRecipe, train_generator
from kdray.models.classifier import build_model

SHAPES = ((1, 28, 28), (3, 32, 32))
BATCH, DRAWN, NOISE, CLASSES = 250, 32, 100, 10
STEPS, TIMES = 4, 30  # that one figure is the mean of

FRESH = """
import time, torch
from kdray.generate.networks.dcgan import DCGAN
from kdray.generate.train import GeneratorRecipe, train_generator
from kdray.models.classifier import build_model
torch.set_num_threads(1)
generator = DCGAN(110, (1, 28, 28))
student = build_model("lenet5", (1, 28, 28), 10, seed=0).eval().requires_grad_(False)
begin = time.perf_counter()
if {plain}:
    torch.optim.Adam(generator.parameters(), lr=1e-3).step()
train_generator(generator, student, GeneratorRecipe(steps=1, batch=10), classes=10, noise=100, conditional=True,
                random=torch.Generator().manual_seed(0))
print(time.perf_counter() - begin)
"""


class ChannelsFirst(DCGAN):
    """The network without what kdray asks of the memory."""

    def forward(self, codes: Tensor) -> Tensor:
        """See `DCGAN`."""
        images: Tensor = self.body(self.spread(codes).view(-1, *self._start))
        return images[:, :, : self._height, : self._width]


def main() -> None:
    """All of them; medians of the repeats."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    figures: dict[str, object] = {"repeats": repeats}
    for shape in SHAPES:
        name = "x".join(map(str, shape))
        figures[f"{name}, seconds a step"] = by_turns(repeats, lambda network, shape=shape: step(network, shape))
        figures[f"{name}, seconds a batch of {DRAWN}"] = by_turns(
            repeats, lambda network, shape=shape: draw(network, shape)
        )
    figures["seconds of the first training of a process, one step"] = by_turns(
        repeats, lambda network: first(plain=network is ChannelsFirst)
    )
    keep("generator", figures)


def by_turns(repeats: int, seconds: Callable[[type[DCGAN]], float]) -> dict[str, float]:
    """Median seconds of kdray's way and of the plain one, and the median ratio of neighbours."""
    ours, plain = zip(*((seconds(DCGAN), seconds(ChannelsFirst)) for _ in range(repeats)), strict=True)
    ratios = [b / a for a, b in zip(ours, plain, strict=True)]
    return {
        "kdray": round(statistics.median(ours), 4),
        "plain": round(statistics.median(plain), 4),
        "times_as_long": round(statistics.median(ratios), 2),
    }


def step(network: type[DCGAN], shape: tuple[int, int, int]) -> float:
    """Seconds of one step against a LeNet-5: those of more steps less those of one."""
    student = build_model("lenet5", shape, CLASSES, seed=0).eval().requires_grad_(False)
    torch.manual_seed(0)
    generator = network(NOISE + CLASSES, shape)

    def seconds(steps: int) -> float:
        begin = time.perf_counter()
        train_generator(
            generator,
            student,
            GeneratorRecipe(steps=steps, batch=BATCH),
            classes=CLASSES,
            noise=NOISE,
            conditional=True,
            random=torch.Generator().manual_seed(0),
        )
        return time.perf_counter() - begin

    once = seconds(1)
    return (seconds(1 + STEPS) - once) / STEPS


def draw(network: type[DCGAN], shape: tuple[int, int, int]) -> float:
    """Seconds in which a generator draws a batch of candidates."""
    generator, codes = network(NOISE + CLASSES, shape).eval(), torch.randn(DRAWN, NOISE + CLASSES)
    with torch.no_grad():
        generator(codes)
        begin = time.perf_counter()
        for _ in range(TIMES):
            generator(codes)
    return (time.perf_counter() - begin) / TIMES


def first(*, plain: bool) -> float:
    """Seconds of the first training in a process of its own; `plain` makes a step of torch.optim.Adam besides."""
    command = [sys.executable, "-c", FRESH.format(plain=plain)]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
