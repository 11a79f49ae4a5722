"""Students trained on the first n of the images that a run has bought: learning curves without a query."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from kdray.config.load import dump_config, load_config
from kdray.config.root import Config
from kdray.errors import ConfigError, KdrayError, RunDirectoryError
from kdray.images import ImageSet
from kdray.images.labels import with_teachers_labels
from kdray.models.checkpoint import read_own_card, read_tensors
from kdray.observers import Observer
from kdray.pools.base import Pool
from kdray.runs.answered import Known, answers_of_run
from kdray.runs.copies import Copies
from kdray.runs.directory import RunDirectory
from kdray.runs.evaluation import Scores
from kdray.runs.inputs import read_labelled, read_test, resolve
from kdray.runs.kinds import Kinds
from kdray.runs.pool_schedule import read_pool
from kdray.runs.remade import Remade
from kdray.runs.student_check import check_student, read_start
from kdray.runs.students import BEGINS_ANEW, LearningCurve, Work, check_counts, make_folder, measured, train_each
from kdray.runs.training_set import with_bought, with_true_labels
from kdray.training.fitting import StudentSpec
from kdray.training.losses.base import check_loss
from kdray.utils.files import write_bytes


def learn(
    run: RunDirectory,
    config: Config,
    *,
    first: Sequence[int] | None = None,
    out: Path | None = None,
    observer: Observer | None = None,
) -> LearningCurve:
    """Train a student on the first n images that `run` has bought, for each n, and measure it. Nothing is asked.

    The images with true labels of the run's config are trained on as well. Each student is trained as that of the last
    round. One of an unchanged config that is trained on all images is the run's own, bit for bit; so are those of
    earlier rounds, if these were trained as the last one: `early` is 1, nothing is `auto`, and there is no `unpaid`.

    Args:
        config: the run's, in which `student`, `seed` and `test` may be others. Its seed is that of training alone: the
            images are drawn with the seed of the run.
        first: the numbers n; None: all images that were bought.
        out: folder for the students; None: RUN/students, or the next free one.
        observer: told what happens; not closed.

    Raises:
        ConfigError: an n is not positive or is larger than what was bought, or the student cannot be trained.
        RunDirectoryError: the run has no student yet, or `out` cannot be used.
        KdrayError: of the kind and with the field of what else is wrong; then nothing was written.
    """
    observer = observer or Observer()
    recorded = load_config(run.config)
    config = resolve(config, recorded)
    bought = _Bought(run)
    if config.student.start == "last":
        observer.note(BEGINS_ANEW)
    counts = check_counts(first, bought.total, run.path)
    spec = _student_spec(run, config)
    card = spec.card
    without_copies = replace(spec, recipe=config.student.model_copy(update={"labels": "reuse"}))

    def of_teacher(data: ImageSet | None, field: str) -> ImageSet | None:
        if data is None or data.labels is None:
            return data
        return with_teachers_labels(data, card.classes, card.num_classes, field=field, on_note=observer.note)

    given = of_teacher(read_labelled(recorded, "labelled", shape=card.image_shape), "labelled")
    same_images = config.model_copy(update={"seed": recorded.seed})
    test = of_teacher(read_test(same_images, shape=card.image_shape), "test")
    known = Known.none() if test is None else answers_of_run(run, recorded, test.images, card.num_classes, observer)
    free = 0 if given is None else len(given)
    images, targets = bought.read(with_true_labels(given, card.num_classes), counts[-1], recorded, card.num_classes)
    curve = LearningCurve(directory=make_folder(run.path / "students", out), points=[])
    write_bytes(curve.directory / "config.yaml", dump_config(config).encode())
    train_each(
        curve,
        counts,
        lambda count: Work(
            spec=spec if bought.has_copies(count) else without_copies,
            images=images[: free + count],
            targets=targets[: free + count],
            round=bought.round_of(count),
        ),
        lambda path: Scores() if test is None else measured(path, test, known, threads=spec.threads),
        observer,
    )
    return curve


class _Bought:
    """The images that a run has bought, each with its first answer, round by round, the sample of an estimate before
    its round.

    Raises:
        RunDirectoryError: there are none.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._parts: list[tuple[int, bool, int]] = []  # round, whether it is a sample, number of images
        for number in itertools.count():
            if not run.artefact(number, "query").exists():
                break
            for sample in (True, False) if run.has_sample(number) else (False,):
                count = run.count_labelled(number, sample) if sample else run.count_first(number)
                self._parts.append((number, sample, count))
        self.total = sum(count for _, _, count in self._parts)
        if self.total == 0:
            raise RunDirectoryError(f"{run.path} has bought no images; go on with: kdray resume {run.path}")

    def round_of(self, count: int) -> int:
        """The round in which the last of the first `count` images was bought, or a later one that bought nothing."""
        sizes = itertools.accumulate(size for _, _, size in self._parts)
        ends = dict(zip((number for number, _, _ in self._parts), sizes, strict=True))  # images after each round
        whole = [number for number, end in ends.items() if end == count]
        return whole[-1] if whole else min(number for number, end in ends.items() if end > count)

    def has_copies(self, count: int) -> bool:
        """Whether augmented copies, about which a last round asks, are among the first `count` images."""
        last, _, size = self._parts[-1]
        return count > self.total - size and self._run.read_candidates(last).source == Copies.source

    def read(self, held: list[Tensor], count: int, config: Config, num_classes: int) -> list[Tensor]:
        """Images and targets: `held`, and behind them the first `count` that were bought."""
        for number, sample, size in self._parts:
            part = self._run.read_labelled(number, num_classes, min(size, count), sample=sample)
            held, count = with_bought(held, part, config.teacher.form.top), count - len(part)
            if count == 0:
                break
        return held


def _student_spec(run: RunDirectory, config: Config) -> StudentSpec:
    """What a student is trained from: as `kdray.runs.inputs.read_inputs` makes it, but from the run's files alone."""
    if not run.student.exists():
        raise RunDirectoryError(f"{run.path} has not finished a round yet; go on with: kdray resume {run.path}")
    card, tensors = replace(read_own_card(run.student), model=config.student.model), read_tensors(run.student)
    check_loss(config.student.loss, card.num_classes, "student.loss")
    check_student(config.student, card.image_shape)
    return StudentSpec(
        card=card,
        mean=tensors["mean"].flatten().tolist(),  # of the run's images, which need not be here any more
        std=tensors["std"].flatten().tolist(),
        recipe=config.student.for_images(card.image_shape),
        seed=config.seed,
        threads=config.resources.trainer.thread_count,
        start=read_start(config.student, card),
        pool=_pool(run, config) if config.student.unpaid is not None else None,
    )


def _pool(run: RunDirectory, config: Config) -> Pool:
    """The run's candidates, for students that learn from unpaid ones."""
    recorded = load_config(run.config)
    try:
        pool = read_pool(recorded).pool
        remade = Remade(run, pool)
        return remade.of_round(run.asked_rounds()[-1]) if remade else Kinds(run, pool).pool
    except KdrayError as error:
        raise ConfigError(
            f"student.unpaid needs the images of {run.path}, but {error}; set student.unpaid to null to train on "
            "bought answers alone"
        ) from None
