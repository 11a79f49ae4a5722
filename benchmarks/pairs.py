"""Pair pools: the rate at which a search scores blended pairs, as a share of the bare forward pass.

    python benchmarks/pairs.py [--seconds 5] [--repeats 5]

One process, one thread, without Ray. For every blend and pre-transform, exhaustive searches of a pool and bare forward
passes over images in memory take turns, each for some seconds. The share is the median over the turns. The first search
of a pool also makes its transformed images, so it is told apart. Beside the pair pools: the mixup pool, mixed as
pixels.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch
from machine import keep

from kdray.models.classifier import build_model
from kdray.pools.base import Pool, PoolSection, pools
from kdray.pools.blends.base import blends
from kdray.pools.transforms.base import transforms
from kdray.runs.bench import Setting, bare
from kdray.search import SearchRequest
from kdray.search.local import LocalSearcher
from kdray.sections.search import SearchSettings

SETTINGS = (Setting(model="lenet5", images=2000), Setting(model="resnet20", images=500, shape=(3, 32, 32)))
SHARE_CHOSEN = 100  # groups for each candidate that the search returns


def main() -> None:
    """Every pool, for a small and a larger network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement, about")
    parser.add_argument("--repeats", type=int, default=5, help="searches of each pool after the first one")
    options = parser.parse_args()
    sections = {"mixup pool, pixels": pools.parse("mixup")}
    for blend in blends.parts():
        for pre in transforms.parts():
            sections[f"{blend}, {pre}"] = pools.parse({"kind": "pairs", "blend": blend, "pre": pre})
    figures = {
        setting.model: {
            "shape": setting.shape,
            "images": setting.images,
            "pools": {
                name: measured(setting, section, options.seconds, options.repeats) for name, section in sections.items()
            },
        }
        for setting in SETTINGS
    }
    keep("pairs", {"seconds_each": options.seconds, "repeats": options.repeats, **figures})


def measured(setting: Setting, section: PoolSection, seconds: float, repeats: int) -> dict[str, float]:
    """Searches and bare forward passes in turn."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (setting.images, *setting.shape), generator=generator, dtype=torch.uint8)
    model = build_model(setting.model, setting.shape, 10, seed=0)
    device, how = setting.device, replace(setting.options, mixing="pixels")
    wanted = bare(setting, 0.5) * seconds  # candidates

    def built(pairs: int) -> Pool:
        return section.model_copy(update={"pairs": pairs}).build(images, 0)

    pool = built(max(1, round(wanted / built(1).group_size)))
    searcher = LocalSearcher(device=device, settings=SearchSettings(search="exhaustive"), options=how)
    rates = []
    for _ in range(1 + repeats):
        before = bare(setting, seconds / 2)
        begin = time.perf_counter()
        found = searcher.search(pool, model, SearchRequest(k=max(1, pool.num_groups // SHARE_CHOSEN)))
        rate = found.evaluated / (time.perf_counter() - begin)
        rates.append((rate, (before + bare(setting, seconds / 2)) / 2))
    shares = [rate / passes for rate, passes in rates]
    row = {
        "candidates": len(pool),
        "candidates_per_s": round(statistics.median(rate for rate, _ in rates[1:])),
        "bare_per_s": round(statistics.median(passes for _, passes in rates[1:])),
        "share": round(statistics.median(shares[1:]), 3),
        "share_least_and_most": [round(min(shares[1:]), 3), round(max(shares[1:]), 3)],
        "share_of_first_search": round(shares[0], 3),
    }
    print(pool.source, row, flush=True)
    return row


if __name__ == "__main__":
    main()
