"""Contact sheets of a pool, and of what a run has bought with the teacher's answers (Active Mixup, figures 2 and 3).

Nothing is asked, and no more candidates are made than are shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kdray.config.root import Config
from kdray.errors import ConfigError, RunDirectoryError
from kdray.pools.base import Pool, rendered
from kdray.pools.kinds import KindsPool
from kdray.pools.permutation import sample_without
from kdray.pools.remade import is_remade
from kdray.report.captions import likeliest, made_of, what_asked
from kdray.report.sheet import Caption, Line, Part, contact_sheet
from kdray.runs.directory import RunDirectory
from kdray.runs.pool_schedule import read_pool
from kdray.runs.remade import Remade
from kdray.teachers.answers import Answers
from kdray.utils.files import check_writable, whole_file
from kdray.utils.seeds import numpy_generator
from kdray.utils.text import counted

_TOP = 3  # classes of an answer, as in Active Mixup's figures
_MARK = ("Software", "kdray preview")  # in the PNG: such a file may be overwritten


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a contact sheet shows.

    Attributes:
        what: all of it in words.
        parts: at least one, with at least one image each.
        notes: what the user should know of the images and the pool, such as programs that were left out.
    """

    what: str
    parts: Sequence[Part]
    notes: Sequence[str] = ()


def preview_pool(config: Config, count: int, run: RunDirectory | None = None) -> Preview:
    """Candidates of the pool that a run with `config` would choose from, drawn at random with its seed.

    Args:
        run: the run that has begun with it: where each round makes its own candidates, the newest are shown.
        count: images in all, evenly of each kind of candidates; fewer where there are fewer. A larger count begins with
            the same candidates.

    Raises:
        KdrayError: what `kdray run` would refuse of the images and the pool.
    """
    pooled = read_pool(config.model_copy(update={"pool": config.pool.showing(count)}))
    pool, made = pooled.pool, 0
    if is_remade(pool) and run is not None:
        made, pool = newest(run, pool)
    kinds = list(zip(pool.names, pool.kinds, strict=True)) if isinstance(pool, KindsPool) else [(pool.source, pool)]
    parts = []
    for number, share in enumerate(shares([len(kind) for _, kind in kinds], count)):
        name, kind = kinds[number]
        drawn = sample_without(len(kind), share, np.empty(0, np.int64), numpy_generator(config.seed, "preview", number))
        ids = pool.outer(number, drawn) if isinstance(pool, KindsPool) else drawn  # as a run records them
        if share:
            parts.append(_part_of_pool(name, kind, drawn, ids))
    total = sum(len(part.captions) for part in parts)
    which = f" that round {made} makes" if made else ""
    what = f"{total:,} of {counted(len(pool), 'candidate')}{which}, drawn at random"
    if is_remade(pool) and not made:
        what = f"{counted(total, 'candidate')} from before there is a student; each round makes its own from it"
    return Preview(what=what, parts=parts, notes=pooled.told())


def newest(run: RunDirectory, pool: Pool) -> tuple[int, Pool]:
    """The newest round of a run that has made candidates, and these; 0 and the pool where none has."""
    made = [number for number in range((run.last_round() or 0) + 1) if run.artefact(number, "make").exists()]
    return (made[-1], Remade(run, pool).of_round(made[-1])) if made else (0, pool)


def _part_of_pool(name: str, pool: Pool, drawn: np.ndarray, ids: np.ndarray) -> Part:
    """The candidates `drawn` of a pool, int64 [B], with their `ids` in the captions."""
    columns = pool.describe(torch.from_numpy(drawn))
    captions = []
    for row, key in enumerate(ids.tolist()):
        about = {column: values[row] for column, values in columns.items()}
        captions.append(Caption(about=about_lines(about, key)))
    return Part(
        title=f"{name}: {len(drawn):,} of {counted(len(pool), 'candidate')}",
        images=rendered(pool, torch.from_numpy(drawn)),
        captions=captions,
    )


def preview_run(run: RunDirectory, config: Config, count: int, only: int | None = None) -> Preview:
    """Images that a run has bought, with the likeliest classes of each answer.

    Args:
        config: the run's.
        count: images in all, evenly of each round and spread evenly over the round's; fewer where there are fewer.
        only: the number of a round, to show that one alone.

    Raises:
        ConfigError: the run has no round `only`.
        RunDirectoryError: nothing was bought, or a file cannot be read.
    """
    asked = run.asked_rounds()
    if only is not None:
        check_round(run, asked, only)
        asked = [only]
    found = [
        (number, sample, run.count_labelled(number, sample))
        for number in asked
        for sample in ((True, False) if run.has_sample(number) else (False,))
    ]
    sizes = [size for *_, size in found]
    if not any(sizes):
        what = f"{run.path}" if only is None else f"round {only} of {run.path}"
        raise RunDirectoryError(f"{what} has bought no images; go on with: kdray resume {run.path}")
    parts = [
        _part_of_round(run, config, number, sample, np.arange(share) * size // share, size)
        for (number, sample, size), share in zip(found, shares(sizes, count), strict=True)
        if share
    ]
    total = sum(len(part.captions) for part in parts)
    rounds = f"in round {asked[0]}" if len(asked) == 1 else f"in rounds {asked[0]} to {asked[-1]}"
    return Preview(what=f"{total:,} of {counted(sum(sizes), 'image')} bought {rounds}", parts=parts)


def check_round(run: RunDirectory, asked: list[int], number: int) -> None:
    """Refuse the number of a round that has no answers.

    Args:
        asked: numbers of the rounds that have some.

    Raises:
        ConfigError: it is none of these.
    """
    last = run.last_round()
    if number < 0 or (last is not None and number > last):
        known = "" if last is None else f", only 0 to {last}"
        raise ConfigError(f"--round: {run.path} has no round {number}{known}; give another one")
    if number not in asked:
        raise ConfigError(
            f"--round: round {number} of {run.path} has no answers yet; go on with: kdray resume {run.path}"
        )


def _part_of_round(run: RunDirectory, config: Config, number: int, sample: bool, rows: np.ndarray, size: int) -> Part:
    """Some rows, int64, of the `size` images that a round bought, or that its estimate did."""
    names, candidates = run.read_classes(number), run.read_candidates(number)
    labelled = run.read_rows(number, len(names), rows, sample)
    what = "for the estimate of m" if sample else what_asked(candidates, config, number)
    return Part(
        title=f"round {number}, {what}: {len(rows):,} of {counted(size, 'image')}",
        images=labelled.images,
        captions=[
            Caption(said=answer_lines(labelled.answers, row, names), about=about_lines(about, labelled.ids[row]))
            for row, about in enumerate(candidates.about(labelled.ids))
        ],
    )


def answer_lines(answers: Answers, row: int, names: Sequence[str]) -> list[Line]:
    """An answer as lines of a caption: the three likeliest classes with their probabilities, or a label alone."""

    def number(share: float | None) -> str:
        if share is None:
            return ""
        return "<0.01" if share < 0.005 else f"{share:.2f}"

    return [(names[label], number(share)) for label, share in likeliest(answers, row, _TOP)]


def about_lines(columns: Mapping[str, Any], key: int) -> list[Line]:
    """What a candidate is made of, and its id. An image that is itself a candidate has its number for an id."""
    if key < 0:
        return [("asked again", "")]
    what, how = made_of(columns)
    if not what or "image" in columns:
        return [(f"id {key}", "")]
    return [(what, ""), (how, f"id {key}")]


def shares(sizes: Sequence[int], count: int) -> list[int]:
    """`count` divided evenly among parts of these sizes; what a small one does not have goes to the others."""
    divided, rest = [0] * len(sizes), min(count, sum(sizes))
    for done, part in enumerate(sorted(range(len(sizes)), key=lambda part: sizes[part])):
        divided[part] = min(sizes[part], -(-rest // (len(sizes) - done)))
        rest -= divided[part]
    return divided


def check_target(path: Path) -> None:
    """Find out, without a trace, that no sheet can be written at `path`.

    Raises:
        ConfigError: the name is not that of a PNG, or the file cannot be written, or is there and is no sheet.
    """
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--out: {path} is not the name of a PNG file; let it end in .png")
    check_writable(path, "--out")
    if path.exists() and not _is_sheet(path):
        raise ConfigError(f"--out: {path} is there already and is no sheet of kdray preview; give another path")


def _is_sheet(path: Path) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get(_MARK[0]) == _MARK[1]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def write_preview(preview: Preview, path: Path, columns: int) -> None:
    """Draw the sheet and write it as a PNG.

    Raises:
        ConfigError: see `check_target`.
    """
    check_target(path)
    mark = PngInfo()
    mark.add_text(*_MARK)
    with whole_file(path) as file:
        contact_sheet(preview.parts, columns).save(file, "PNG", pnginfo=mark)
