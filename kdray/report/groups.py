"""Contact sheets of whole groups: a row a pair of images, at every λ (Active Mixup, figure 3). Nothing is asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kdray.config.root import Config
from kdray.errors import ConfigError, RunDirectoryError
from kdray.models.checkpoint import load_student
from kdray.models.classifier import ImageClassifier
from kdray.models.predict import predict
from kdray.pools.base import Pool
from kdray.pools.kinds import KindsPool
from kdray.pools.permutation import sample_without
from kdray.report.captions import made_of
from kdray.report.preview import Preview, answer_lines, check_round, shares
from kdray.report.sheet import Caption, Line, Part
from kdray.runs.directory import RunDirectory
from kdray.runs.pool_schedule import read_pool
from kdray.teachers.answers import Answers
from kdray.utils.seeds import numpy_generator
from kdray.utils.text import counted


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A pool whose groups have several candidates.

    Attributes:
        first: what a run calls its first candidate.
    """

    pool: Pool
    first: int

    def ids(self, group: int) -> np.ndarray:
        """What a run calls the candidates of a group, int64."""
        size = self.pool.group_size
        return self.first + group * size + np.arange(size)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What is known of a run's candidates.

    Attributes:
        said: by the teacher, of those that were bought: id -> lines of a caption.
        student: the newest, or None.
        names: of the classes.
    """

    said: Mapping[int, list[Line]]
    student: ImageClassifier | None
    names: Sequence[str]


_NOTHING = _Known(said={}, student=None, names=())


def groups_of_pool(config: Config, count: int) -> Preview:
    """Groups of the pool that a run with `config` would choose from, drawn at random with its seed.

    Args:
        count: images in all, at most, but one group at least; evenly of each kind of candidates.

    Raises:
        ConfigError: no kind of candidates has groups of several.
        KdrayError: what `kdray run` would refuse of the images and the pool.
    """
    pooled = read_pool(config)
    kinds = _kinds(pooled.pool)
    wanted = shares([kind.pool.num_groups for kind in kinds], _rows(kinds, count))
    parts = []
    for number, (kind, share) in enumerate(zip(kinds, wanted, strict=True)):
        generator = numpy_generator(config.seed, "preview groups", number)
        groups = sample_without(kind.pool.num_groups, share, np.empty(0, np.int64), generator)
        parts += [_part(kind, group, _NOTHING) for group in groups.tolist()]
    total = sum(kind.pool.num_groups for kind in kinds)
    what = f"{len(parts):,} of {counted(total, 'group')}, drawn at random"
    return Preview(what=what, parts=parts, notes=pooled.told())


def groups_of_run(run: RunDirectory, config: Config, count: int, only: int | None = None) -> Preview:
    """Groups of which a run has bought a candidate, spread evenly over all of these, with what the teacher said of what
    was bought and what the newest student says of each.

    Args:
        config: the run's.
        count: images in all, at most, but one group at least.
        only: the number of a round, to show its groups alone.

    Raises:
        ConfigError: the run has no round `only`, or no kind of candidates has groups of several.
        RunDirectoryError: no candidate of such a group was bought, or a file cannot be read.
    """
    asked = run.asked_rounds()
    if only is not None:
        check_round(run, asked, only)
    kinds = _kinds(read_pool(config).pool)
    places = _bought(run, asked)
    found = {
        (which, (key - kind.first) // kind.pool.group_size): None
        for key, (number, *_) in places.items()
        for which, kind in enumerate(kinds)
        if 0 <= key - kind.first < len(kind.pool) and only in (None, number)
    }
    if not found:
        where = f"{run.path}" if only is None else f"round {only} of {run.path}"
        raise RunDirectoryError(f"{where} has bought no candidate of a group; leave --groups out")
    share = min(_rows(kinds, count), len(found))
    each = [(kinds[which], group) for which, group in found]
    shown = [each[place * len(each) // share] for place in range(share)]
    known = _known(run, places, [key for kind, group in shown for key in kind.ids(group).tolist()])
    parts = [_part(kind, group, known) for kind, group in shown]
    return Preview(what=f"{share:,} of {counted(len(found), 'group')} of which a candidate was bought", parts=parts)


def _kinds(pool: Pool) -> list[_Kind]:
    """The kinds of candidates whose groups have several.

    Raises:
        ConfigError: there are none.
    """
    inner = pool.kinds if isinstance(pool, KindsPool) else (pool,)
    firsts = [0] * len(inner)
    if isinstance(pool, KindsPool):
        firsts = [int(pool.outer(number, np.zeros(1, np.int64))[0]) for number in range(len(inner))]
    kinds = [_Kind(pool=kind, first=first) for kind, first in zip(inner, firsts, strict=True) if kind.group_size > 1]
    if not kinds:
        raise ConfigError(f"--groups: every candidate of a pool of {pool.source} is a group of its own; leave it out")
    return kinds


def _rows(kinds: Sequence[_Kind], count: int) -> int:
    return max(1, count // max(kind.pool.group_size for kind in kinds))


def _bought(run: RunDirectory, asked: Sequence[int]) -> dict[int, tuple[int, bool, int]]:
    """Where the answers of a run's candidates are: id -> round, whether in its sample, and row."""
    places: dict[int, tuple[int, bool, int]] = {}
    for number in asked:
        if number == 0 or "copy_of" in run.read_candidates(number).columns:
            continue
        for sample in (True, False) if run.has_sample(number) else (False,):
            places |= {key: (number, sample, row) for row, key in enumerate(run.read_ids(number, sample).tolist())}
    return places


def _known(run: RunDirectory, places: Mapping[int, tuple[int, bool, int]], ids: Sequence[int]) -> _Known:
    """What is known of candidates."""
    by_file: dict[tuple[int, bool], dict[int, int]] = {}  # row -> id
    for key in ids:
        if key in places:
            number, sample, row = places[key]
            by_file.setdefault((number, sample), {})[row] = key
    said: dict[int, list[Line]] = {}
    names = run.read_classes(next(iter(by_file))[0])
    for (number, sample), keys in by_file.items():
        rows = sorted(keys)
        answers = run.read_rows(number, len(names), np.array(rows), sample).answers
        said |= {keys[row]: answer_lines(answers, at, names) for at, row in enumerate(rows)}
    path = run.path / "student.safetensors"
    return _Known(said=said, student=load_student(path) if path.exists() else None, names=names)


def _part(kind: _Kind, group: int, known: _Known) -> Part:
    """All candidates of a group, in a row."""
    inner = group * kind.pool.group_size + torch.arange(kind.pool.group_size)
    images, columns = kind.pool.render(inner).cpu(), kind.pool.describe(inner)
    guessed: Answers | None = None
    if known.student is not None:
        probs = predict(known.student, images)
        guessed = Answers(probs=probs, labels=probs.argmax(dim=1), num_classes=probs.shape[1])
    captions, title = [], ""
    for row, key in enumerate(kind.ids(group).tolist()):
        title, how = made_of({name: values[row] for name, values in columns.items()})
        about = answer_lines(guessed, row, known.names) if guessed is not None else []
        captions.append(Caption(said=known.said.get(key, ()), about=[*about, (how, f"id {key}")]))
    return Part(title=f"{kind.pool.source} {title}", images=images, captions=captions)
