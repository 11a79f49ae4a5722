"""Contact sheets of what a round has chosen and not yet asked about."""

import numpy as np
import torch

from kdray.config.root import Config
from kdray.errors import ConfigError
from kdray.pools.base import rendered
from kdray.pools.remade import is_remade
from kdray.report.captions import what_asked
from kdray.report.preview import Preview, about_lines
from kdray.report.sheet import Caption, Part
from kdray.runs.directory import RunDirectory
from kdray.runs.pool_schedule import read_pool
from kdray.runs.remade import Remade
from kdray.utils.text import counted


def is_chosen(run: RunDirectory, number: int) -> bool:
    """Whether a round has chosen, and has no answers yet."""
    return run.artefact(number, "choose").exists() and not run.artefact(number, "query").exists()


def preview_choice(run: RunDirectory, config: Config, number: int, count: int) -> Preview:
    """What a round has chosen and not yet asked about.

    Args:
        config: the run's.
        number: of the round, see `is_chosen`.
        count: images in all, spread evenly over the choice; fewer where there are fewer.

    Raises:
        ConfigError: the round asks about copies of what was bought, which are not kept.
        KdrayError: what `kdray resume` would refuse of the images and the pool.
    """
    candidates = run.read_candidates(number)
    if "copy_of" in candidates.columns:
        raise ConfigError(
            f"--round: round {number} of {run.path} asks about augmented copies, which are made as it asks; give "
            "another one"
        )
    pooled = read_pool(config)
    size = len(candidates.ids)
    share = min(count, size)
    ids = candidates.ids[np.arange(share) * size // share]
    if number == 0:
        images = pooled.images.images[torch.from_numpy(ids)]
    else:
        pool = Remade(run, pooled.pool).of_round(number) if is_remade(pooled.pool) else pooled.pool
        images = rendered(pool, torch.from_numpy(ids))
    captions = [
        Caption(about=about_lines(about, key)) for about, key in zip(candidates.about(ids), ids.tolist(), strict=True)
    ]
    what = f"{share:,} of {counted(size, 'image')} that round {number} has chosen and not asked about"
    title = f"round {number}, {what_asked(candidates, config, number)}: {share:,} of {counted(size, 'image')}"
    return Preview(what=what, parts=[Part(title=title, images=images, captions=captions)], notes=pooled.told())
