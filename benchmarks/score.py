"""Scoring: how near the bare forward pass, how many forward passes fewer, and beside what a user would write instead.

    python benchmarks/score.py ceiling   whole exhaustive searches on Ray against as many bare loops: LeNet-5, ResNet-18
    python benchmarks/score.py mnist     guessing against scoring all, LeNet-5, all 1,999,000 pairs of 2,000 images
    python benchmarks/score.py cifar10   the same, ResNet-20, a sample of the pairs
    python benchmarks/score.py peers     a script in the paper's style and Ray Data, over the same candidates

Each writes results/score_NAME.json. The students are real: made as round 0 makes them, from 2,000 images.
"""

import argparse
import dataclasses
import statistics
import time
from pathlib import Path

import torch
from machine import keep

from kdray.config.load import load_config
from kdray.images.base import read_images
from kdray.models.checkpoint import load_student
from kdray.pools.mixup import MixupPool, MixupSection
from kdray.runs.bench import Setting, measure
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run
from kdray.search import SearchRequest, SearchResult
from kdray.search.forward import ForwardOptions
from kdray.sections.search import SearchSettings
from kdray.utils.seeds import numpy_generator

WORKERS = 2
EXHAUSTIVE = SearchSettings(search="exhaustive")
PEER_PAIRS = 60_000


def ceiling(repeats: int) -> dict:
    """Exhaustive searches, end to end, as a share of the bare forward pass."""
    lenet = Setting(model="lenet5", workers=WORKERS, seconds=6.0, repeats=repeats)
    resnet = Setting(
        model="resnet18", images=500, shape=(3, 32, 32), workers=WORKERS, seconds=40.0, repeats=max(2, repeats // 2)
    )
    settings = {
        "lenet5, pixels": dataclasses.replace(lenet, options=ForwardOptions(mixing="pixels")),
        "lenet5, auto": lenet,
        "resnet18, auto": resnet,
    }
    figures = {}
    for name, setting in settings.items():
        speeds = measure(setting, print)
        figures[name] = {
            "shape": setting.shape,
            "repeats": setting.repeats,
            "seconds_each": setting.seconds,
            "speeds": [dataclasses.asdict(speed) for speed in speeds],
            "scaling": speeds[-1].candidates_per_s / speeds[0].candidates_per_s,
        }
    return figures


def round_0(config_file: str, out: Path, *overrides: str):
    """The config, and the student that round 0 makes of its images; made once, into `out`."""
    config = load_config(config_file, ["select.rounds=0", *overrides])
    directory = RunDirectory(out)
    if directory.next_phase(0) is not None:
        run(config, directory, local=True)
    return config, load_student(directory.artefact(0, "train"))


class Timed:
    """A searcher on Ray, its workers up and warm."""

    def __init__(self) -> None:
        from actors.cluster import connect
        from actors.scoring import RaySearcher

        self._make, self._cluster = RaySearcher, connect()

    def __enter__(self) -> "Timed":
        self._cluster.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._cluster.__exit__(*exception)

    def __call__(self, pool: MixupPool, model, request: SearchRequest, settings: SearchSettings):
        """(what was found, seconds, notes)."""
        searcher, notes = self._make(WORKERS, settings=settings), []
        searcher.start()
        small = MixupPool(pool.images[:30], pool.lambdas)
        searcher.search(small, model, SearchRequest(k=10))
        begin = time.perf_counter()
        found = searcher.search(pool, model, request, seed=1, on_note=notes.append)
        seconds = time.perf_counter() - begin
        searcher.close()
        return found, seconds, notes


def compare(pool: MixupPool, model, searches: list[tuple[int, float]], prefixes: tuple[int, ...] = ()) -> dict:
    """Guessing against scoring all: real searches for k with `keep`.

    Which pairs are scored exactly depends on `keep` times k alone, so the first of what a search for more finds are
    what one for fewer finds with the same list: `prefixes` are smaller k, told of each search.
    """
    most = max(k for k, _ in searches)
    with Timed() as search:
        exact, exact_s, _ = search(pool, model, SearchRequest(k=most), EXHAUSTIVE)
        print(f"exhaustive: {exact.evaluated:,} passes, {exact_s:.1f} s", flush=True)
        runs = []
        for k, times in searches:
            settings = SearchSettings(search="interpolated", keep=times, min_recall=0.0)
            found, seconds, _ = search(pool, model, SearchRequest(k=k), settings)
            for few in (k, *(few for few in prefixes if few < k)):
                runs.append(
                    {
                        "k": few,
                        "searched_for": k,
                        "keep": found.keep and found.keep * k / few,  # None: all were scored
                        "passes": found.evaluated,
                        "times_fewer_passes": exact.evaluated / found.evaluated,
                        "seconds": seconds,
                        "times_less_time": exact_s / seconds,
                        "estimated": dataclasses.asdict(found.recall) if found.recall and few == k else None,
                        **against(exact, found, few),
                    }
                )
                print(runs[-1], flush=True)
    return {
        "candidates": len(pool),
        "exhaustive_s": exact_s,
        "exhaustive_per_s": exact.evaluated / exact_s,
        "searches": runs,
    }


def against(exact: SearchResult, found: SearchResult, k: int) -> dict:
    """The k best that were found, beside the k best there are."""
    chosen = dict(zip(exact.ids[:k].tolist(), exact.scores[:k].tolist(), strict=True))
    ids, scores = found.ids[:k].tolist(), found.scores[:k]
    return {
        "recall": len(set(ids) & set(chosen)) / k,
        "mean_score": float(scores.mean()),
        "mean_score_exhaustive": float(exact.scores[:k].mean()),
        "same_bits": all(
            chosen.get(number, score) == score for number, score in zip(ids, scores.tolist(), strict=True)
        ),
    }


def mnist() -> dict:
    """LeNet-5, the whole pool of examples/mnist.yaml."""
    config, student = round_0("examples/mnist.yaml", Path("runs/bench-mnist"), "budget.queries=2000")
    images = read_images(config.images, generator=numpy_generator(config.seed, "images"))
    lists = (44_000, 110_000, 220_000)  # pairs scored exactly; 110,000 is the default for k = 22,000
    searches = [(k, listed / k) for k in (22_000, 5_000, 1_000) for listed in lists]
    return compare(config.pool.build(images.images, config.seed), student, searches)


def cifar10(pairs: int) -> dict:
    """ResNet-20, a sample of the pairs of 2,000 images; three of the k are those shares of it that 1,000, 5,000 and
    22,000 are of all pairs."""
    config, student = round_0(str(Path(__file__).with_name("cifar10.yaml")), Path("runs/bench-cifar10"))
    images = read_images(config.images, generator=numpy_generator(config.seed, "images"))
    pool = MixupPool(images.images, config.pool.grid(), pairs=pairs, seed=0)
    most = pairs // 40
    return compare(
        pool, student, [(most, 1.0), (most, 2.0), (most, 5.0)], (pairs // 90, pairs // 200, pairs // 400, pairs // 2000)
    )


def peers(repeats: int) -> dict:
    """What a user would write instead, and kdray, in turn, over the same pairs.

    Ray Data starts its actors for every execution; its rate is given with that and without, and kdray's workers are up
    in both. The script in the paper's style gets the better of its loader settings.
    """
    import tempfile

    from peers import paper_script, ray_data

    config, student = round_0("examples/mnist.yaml", Path("runs/bench-mnist"), "budget.queries=2000")
    images = read_images(config.images, generator=numpy_generator(config.seed, "images")).images
    lambdas = MixupSection().grid()
    rows: list[dict[str, float]] = []
    with Timed() as search, tempfile.TemporaryDirectory() as folder:
        paper_script.write_images(images, Path(folder))
        for number in range(repeats):
            pool = MixupPool(images, lambdas, pairs=PEER_PAIRS, seed=number)
            pairs = torch.stack(pool.pair(torch.arange(PEER_PAIRS)), dim=1).numpy()
            k = PEER_PAIRS // 90
            found, seconds, _ = search(pool, student, SearchRequest(k=k), EXHAUSTIVE)
            row = {"kdray": found.evaluated / seconds}
            best = 0.0
            for loaders in (0, 1, WORKERS):
                part = pairs[: PEER_PAIRS // 4]
                chosen, rate, _ = paper_script.score(Path(folder), len(images), lambdas, student, part, k // 4, loaders)
                best = max(best, rate)
            row["paper_script"] = best
            chosen, rate, first_s = ray_data.score(images, lambdas, student, pairs, k, WORKERS)
            row["ray_data"] = rate
            row["ray_data_without_start"] = len(pool) / (len(pool) / rate - first_s)
            row["ray_data_overlap"] = len(set(chosen.tolist()) & set((found.ids // len(lambdas)).tolist())) / k
            rows.append(row)
            print(row, flush=True)
    others = ("paper_script", "ray_data", "ray_data_without_start")
    times = {name: statistics.median(row["kdray"] / row[name] for row in rows) for name in others}
    return {"rows": rows, "kdray_times_as_fast": times, "pairs": PEER_PAIRS, "repeats": repeats}


def main() -> None:
    """The part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("ceiling", "mnist", "cifar10", "peers"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=20_000, help="of cifar10")
    options = parser.parse_args()
    figures = {
        "ceiling": lambda: ceiling(options.repeats),
        "mnist": mnist,
        "cifar10": lambda: cifar10(options.pairs),
        "peers": lambda: peers(options.repeats),
    }[options.part]()
    keep(f"score_{options.part}", figures)


if __name__ == "__main__":
    main()
