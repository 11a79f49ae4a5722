"""The config of one experiment: its sections, and the rules between them.

The section of a part is defined beside the part. Sections that belong to no single part are defined here.
"""

import contextlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from kdray.config.money import BudgetSection, LedgerSection
from kdray.errors import ConfigError
from kdray.images.base import ImageSource, sources
from kdray.pools.base import PoolSection, pools
from kdray.sections.base import Section, Threads
from kdray.sections.search import PATIENCE_S, SearchSettings
from kdray.select.base import Strategy, strategies
from kdray.teachers.base import TeacherSection, teachers
from kdray.teachers.local import LocalTeacherConfig
from kdray.training.recipe import StudentSection


class TrainerSection(Section):
    """Where the student is trained."""

    resumable_fields: ClassVar[tuple[str, ...]] = ("where", "gpus")

    where: Literal["auto", "driver", "worker"] = "auto"
    """driver: in the process that runs the loop. worker: in a Ray actor, on a node with `gpus` GPUs, or on the one
    with the most CPUs. auto: a worker if `gpus` is set or the cluster has a GPU and the driver has none, else the
    driver."""
    threads: Threads = "auto"
    """CPU threads for training the student. The last bits of results depend on this number. So auto is resolved once
    and written into the run's config.yaml: 1 for lenet5, mlp and small-cnn, all cores for larger
    networks."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs of a training worker; may be a fraction. With several workers, 0 or 1."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Number of training workers. Several share each batch, each with `threads` threads and `gpus` GPUs, by Ray Train
    and torch's DistributedDataParallel. The steps are those of one worker, but the last bits of results depend on this
    number."""

    @model_validator(mode="after")
    def _several_workers_are_on_ray(self) -> "TrainerSection":
        if self.workers > 1 and self.where == "driver":
            raise ValueError(
                f"trainer.workers is {self.workers}, but trainer.where is driver, which is one process; set where to "
                "worker or auto, or workers to 1"
            )
        if self.workers > 1 and self.gpus not in (0, 1):
            raise ValueError(
                f"trainer.gpus is {self.gpus:g}, but each of {self.workers} training workers uses one GPU or none; set "
                "gpus to 0 or 1"
            )
        return self

    @property
    def thread_count(self) -> int:
        """The number of threads in a resolved config.

        Raises:
            ConfigError: `threads` is still auto; see `kdray.runs.inputs.resolve`.
        """
        if self.threads == "auto":
            raise ConfigError("resources.trainer.threads: auto has not been resolved yet")
        return self.threads


class ResourcesSection(Section):
    """The resources that Ray may use. A field does not change which candidates are chosen, unless it says so."""

    resumable_fields: ClassVar[tuple[str, ...]] = (
        "scoring_workers", "scoring_gpus", "scoring_precision", "scoring_compile", "teacher_workers", "chunk",
        "patience_s",
    )  # fmt: skip

    scoring_workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Number of scoring workers, one CPU each; auto: as many as the free CPUs (and GPUs if `scoring_gpus` is set) hold
    at the start, and more as others become free. A cluster that scales up starts nodes for workers that do not fit, so
    it needs a number."""
    scoring_gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs of one scoring worker; may be a fraction."""
    scoring_precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of scoring; auto: float32 on CPUs, bfloat16 or float16 on GPUs. It changes the last bits of scores."""
    scoring_compile: Literal["auto", "on", "off"] = "auto"
    """Whether to compile the student for scoring; auto: on GPUs only. It changes the last bits of scores."""
    teacher_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Number of teacher workers; auto: as many as scoring workers for a local teacher, else one. With 0, the driver
    queries the teacher itself."""
    trainer: TrainerSection = TrainerSection()
    """Where, and with how many threads, the student is trained."""
    chunk: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Approximate number of images in a scoring task. A worker that dies loses its tasks. auto: about one second's
    work."""
    patience_s: Annotated[float, Field(gt=0)] = PATIENCE_S
    """Seconds that a run waits while it has no scoring worker or no teacher worker at all, or while its training worker
    has no GPU, such as while a cluster starts nodes. Then it stops, and can be resumed."""


class Config(Section):
    """One experiment."""

    seed: Annotated[int, Field(ge=0)] = 0
    """The seed of all random numbers."""
    images: Annotated[ImageSource, sources]
    """The user's unlabelled images."""
    labelled: Annotated[ImageSource, sources] | None = None
    """Images with true labels. The student is trained on them in every round, together with the queried images. They
    cost no queries (the set A of RAD's Algorithm 1)."""
    validation: Annotated[ImageSource, sources] | None = None
    """Labelled images on which the teacher's error is measured, if `select.m` is estimate. The student is never trained
    on them."""
    test: Annotated[ImageSource, sources] | None = None
    """Images on which the student is measured: its accuracy where they have labels, and its agreement with the teacher
    on those that `budget.evaluation` lets the teacher be asked about. They are never used for training or for early
    stopping. Their classes, as those of `labelled` and `validation`, are matched to the teacher's by name."""
    teacher: Annotated[TeacherSection, teachers]
    """The teacher, which answers queries."""
    budget: BudgetSection
    """The limits on queries."""
    ledger: LedgerSection = LedgerSection()
    """The record of the answers."""
    pool: Annotated[PoolSection, pools] = Field(default_factory=pools.default)
    """The candidates."""
    select: Annotated[Strategy, strategies] = Field(default_factory=strategies.default)
    """The strategy that chooses candidates."""
    student: StudentSection = StudentSection()
    """The student, and how it is trained."""
    resources: ResourcesSection = ResourcesSection()
    """The resources that Ray may use."""

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_scored_where_all_is_taken(cls, data: Any) -> Any:
        # Written into the config, as the default strategy makes forward passes.
        if not isinstance(data, Mapping) or not isinstance(given := data.get("select", {}), Mapping):
            return data
        pool = data.get("pool", {})
        with contextlib.suppress(LookupError):  # the field itself says what is wrong
            exact = pool.exact if isinstance(pool, PoolSection) else pools.named(pool).exact
            if exact and "strategy" not in given:
                return {**data, "select": {**given, "strategy": "random"}}
        return data

    @model_validator(mode="after")
    def _rounds_have_queries(self) -> "Config":
        schedule = self.select.schedule
        given = [name for name in ("rounds", "per_round") if getattr(self.select, name) is not None]
        if schedule != "even" and given:
            raise ValueError(
                f"select.{given[0]} is set, but with select.schedule = {schedule} the rounds follow from the budget; "
                f"leave select.{given[0]} out, or set select.schedule to even"
            )
        if self.select.per_round is not None and self.select.rounds == 0:
            raise ValueError("select.per_round is set, but select.rounds is 0; set select.rounds to at least 1")
        return self

    @model_validator(mode="after")
    def _training_workers_have_work(self) -> "Config":
        workers, batch, device = self.resources.trainer.workers, self.student.batch_size, self.student.device
        if workers > batch:
            raise ValueError(
                f"resources.trainer.workers is {workers}, but student.batch_size is {batch}: each worker needs an "
                "image of every batch; set workers lower or batch_size higher"
            )
        if workers > 1 and (device.startswith("cuda:") or (device == "cuda" and not self.resources.trainer.gpus)):
            raise ValueError(
                f"student.device is {device}, but Ray gives each of {workers} training workers its device; set "
                "student.device to auto, and resources.trainer.gpus to 1 for GPUs"
            )
        return self

    @model_validator(mode="after")
    def _a_teacher_is_trained_on_something(self) -> "Config":
        recipe = self.teacher.recipe
        if recipe is not None and recipe.images is None and self.labelled is None:
            raise ValueError(
                "teacher.train.images is missing, and there is no labelled set: say what the teacher is trained on"
            )
        return self

    @model_validator(mode="after")
    def _shared_rounds_choose_from_one_pool(self) -> "Config":
        if (
            self.select.schedule != "even"
            and not self.pool.asks_again
            and (found := _sized_by_the_budget(self.pool, "pool")) is not None
        ):
            field, what = found
            raise ValueError(
                f"{field}: auto takes as many {what} as the budget needs, so another budget chooses from another pool "
                "and shares no rounds; give a number, or set select.schedule to even"
            )
        return self

    @model_validator(mode="after")
    def _a_trial_of_kinds_has_rounds_after_it(self) -> "Config":
        if len(self.pool.kinds) == 1:
            return self
        if self.select.schedule != "even" or self.select.rounds == 0:
            raise ValueError(
                f"pool.kind: {self.pool.kind} finds the kind of candidates for later rounds, and needs "
                "select.schedule = even and select.rounds of at least 1; set these, or name one kind of pool"
            )
        if getattr(self.select, "m", None) == "estimate":
            raise ValueError(
                f"select.m: estimate asks about candidates of one kind, and pool.kind is {self.pool.kind}; set "
                "select.m to a share such as 0.05, or name one kind of pool"
            )
        return self

    @model_validator(mode="after")
    def _candidates_made_anew_are_not_asked_about_before(self) -> "Config":
        if self.pool.remade and getattr(self.select, "m", None) == "estimate":
            raise ValueError(
                f"select.m: estimate asks about candidates before round 1 makes those of pool.kind = {self.pool.kind}; "
                "set select.m to a share such as 0.05"
            )
        return self

    @model_validator(mode="after")
    def _one_student_goes_on_with_one_kind(self) -> "Config":
        if self.student.start == "last" and len(self.pool.kinds) > 1:
            raise ValueError(
                f"student.start is last, and pool.kind {self.pool.kind} compares kinds of candidates by students of "
                "their own; set student.start to new, or name one kind of pool"
            )
        return self

    @property
    def can_balance(self) -> bool:
        """Whether `select.balance` could be set here, and is not."""
        return self.select.balance is None and self.select.ordered and not self.pool.exact

    @model_validator(mode="after")
    def _candidates_that_are_all_taken_are_not_scored(self) -> "Config":
        if not self.pool.exact:
            return self
        what = f"each round takes all candidates that pool.kind = {self.pool.kind} makes"
        if self.select.asks:
            raise ValueError(f"select.strategy: {self.select.strategy} has nothing to choose: {what}; set it to random")
        if self.select.looks:
            raise ValueError(f"select.balance: {self.select.balance} has nothing to choose: {what}; set it to null")
        if self.student.unpaid is not None:
            raise ValueError(f"student.unpaid: {what}, and none is left that is unpaid; set it to null")
        return self

    @model_validator(mode="after")
    def _a_round_that_asks_again_trains_on_that(self) -> "Config":
        if not self.pool.asks_again:
            return self
        if self.student.replay != "none":
            raise ValueError(
                "pool.requery: the student of a round learns from what the round asks, and that is all images so far; "
                "set student.start to last and student.replay to none, or pool.requery to false"
            )
        if not self.pool.remade:
            raise ValueError(
                f"pool.kind: {self.pool.kind} asks again (asks_again), but only a pool that makes its candidates anew "
                "in each round (remade) can; let asks_again be false"
            )
        if self.select.schedule != "even" or self.student.labels == "requery":
            raise ValueError(
                "pool.requery is counted in even rounds of new images alone; set select.schedule to even and "
                "student.labels to reuse, or pool.requery to false"
            )
        if type(self.select).queries is not Strategy.queries:
            raise ValueError(
                f"select.strategy: {self.select.strategy} divides the budget in its own way, and with pool.requery "
                "each round has as many new images; set pool.requery to false, or name another strategy"
            )
        return self

    @model_validator(mode="after")
    def _only_a_local_teacher_is_looked_into(self) -> "Config":
        if not self.pool.white_box:
            return self
        local = isinstance(self.teacher, LocalTeacherConfig) and self.teacher.model is not None
        if not local or self.teacher.input.size is not None or self.teacher.input.colour is not None:
            raise ValueError(
                "pool.gradients: teacher needs teacher.kind = local with a network by name (teacher.model), and images "
                "as the student sees them (no teacher.input.size or colour); change these, or set pool.gradients to "
                "student"
            )
        return self

    @property
    def search(self) -> SearchSettings:
        """How the pool is searched. Of several kinds those that have settings have the same ones."""
        return next((kind for kind in self.pool.kinds if isinstance(kind, SearchSettings)), SearchSettings())

    @property
    def last_round(self) -> int | None:
        """T, the number of the last round, where it follows from the config alone."""
        rounds = self.select.rounds
        return None if rounds is None else rounds + (len(self.pool.kinds) > 1) + (self.student.labels == "requery")

    @model_validator(mode="after")
    def _the_choice_suits_the_pool(self) -> "Config":
        for pool in self.pool.kinds:
            self.select.check(pool, labelled=self.labelled is not None, validation=self.validation is not None)
        return self


def _sized_by_the_budget(pool: PoolSection, field: str) -> tuple[str, str] | None:
    """The field by which a pool has as many candidates as the budget needs, and what it counts; or None."""
    if getattr(pool, "candidates", None) == "auto":
        return f"{field}.candidates", "candidates"
    if getattr(pool, "pairs", None) == "auto":
        return f"{field}.pairs", "pairs"
    parts = getattr(pool, "of", ())
    for number, part in enumerate(parts if isinstance(parts, list) else ()):
        # What is endless has its share of the whole, which is a number here
        if getattr(part, "pairs", None) == "auto":
            return f"{field}.of.{number}.pairs", "pairs"
    return None
