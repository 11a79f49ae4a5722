"""The config: one YAML file an experiment, every field with its default and its meaning.

The teacher's sections are in `config_teacher.py`, the choice's in `config_select.py`, what several sections share in
`config_parts.py`; all are had here.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from kdray.config_parts import (
    AugmentConfig,
    Classes,
    DigitsImages,
    EarlyStopConfig,
    FolderImages,
    ImagesConfig,
    ParquetImages,
    Section,
    Threads,
    TorchvisionImages,
    TrainConfig,
    known_model,
)
from kdray.config_select import SelectConfig, estimate_queries, schedule
from kdray.config_teacher import (
    HttpTeacher,
    LimitsConfig,
    LocalTeacher,
    NormaliseConfig,
    PythonTeacher,
    RetryConfig,
    TeacherConfig,
    TeacherTrainConfig,
)
from kdray.errors import ConfigError
from kdray.pools.mixup import check_lambdas

__all__ = [
    "AugmentConfig",
    "BudgetConfig",
    "Classes",
    "Config",
    "DigitsImages",
    "EarlyStopConfig",
    "FolderImages",
    "HttpTeacher",
    "ImagesConfig",
    "LambdaGrid",
    "LedgerConfig",
    "LimitsConfig",
    "LocalTeacher",
    "NormaliseConfig",
    "ParquetImages",
    "PoolConfig",
    "PythonTeacher",
    "ResourcesConfig",
    "RetryConfig",
    "SelectConfig",
    "StudentConfig",
    "TeacherConfig",
    "TeacherTrainConfig",
    "TorchvisionImages",
    "TrainConfig",
    "TrainerConfig",
    "estimate_queries",
    "schedule",
]


class StudentConfig(TrainConfig):
    """The student, trained from scratch each round on all that has been bought."""

    model: Annotated[str, Field(validate_default=True)] = "lenet5"
    """A network of the zoo: see `kdray.students.models`."""

    _model = field_validator("model")(known_model)


class BudgetConfig(Section):
    """What may be spent. The ledger holds it as a hard cap."""

    queries: Annotated[int, Field(ge=1)]
    """Most queries for training, round 0 included."""
    evaluation: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Most queries on test images, for agreement and the teacher's accuracy; counted apart. auto: all of the test set
    where the teacher is local, none where it may cost money."""
    price_per_query: Annotated[float, Field(ge=0)] | None = None
    """Price of one query, for `kdray plan` and the report."""
    currency: str = "USD"
    """Currency of the price."""


class LedgerConfig(Section):
    """The record of every answer bought. Runs that share one never pay twice for the same image."""

    path: str | None = None
    """The file; null keeps it in the run directory. Runs and trials that name the same file share it."""
    queries: Annotated[int, Field(ge=1)] | None = None
    """Hard cap on the training queries of all who share the file together, besides each one's `budget.queries`; null
    sets none. The file keeps it: `kdray ledger FILE --budget N` changes it."""

    @model_validator(mode="after")
    def _a_cap_for_all_needs_a_file_for_all(self) -> "LedgerConfig":
        if self.queries is not None and self.path is None:
            raise ValueError("ledger.queries is set, but ledger.path is null; give the file that is shared")
        return self


_MAX_LAMBDAS = 10_000  # pixels have 256 values: a finer grid only repeats images


class LambdaGrid(Section):
    """λ from `min` to `max` in steps of `step`."""

    min: float
    """First λ."""
    max: float
    """Last λ, where a step falls on it."""
    step: Annotated[float, Field(gt=0)]
    """Distance between two λ."""

    def values(self) -> tuple[float, ...]:
        """The grid, each value rounded to ten decimals so that 0.3 + 5 * 0.04 is 0.5."""
        steps = int((self.max - self.min) / self.step + 1e-9)
        if steps >= _MAX_LAMBDAS:
            raise ConfigError(
                f"pool.lambdas: {steps + 1:,} values of λ; give a step that makes {_MAX_LAMBDAS:,} at most"
            )
        return tuple(round(self.min + k * self.step, 10) for k in range(steps + 1)) if self.max >= self.min else ()


class PoolConfig(Section):
    """The virtual pool of candidates."""

    kind: Literal["mixup", "images"] = "mixup"
    """mixup: pairs of the images, at every λ. images: the images themselves; all other fields are of mixup."""
    lambdas: LambdaGrid | list[float] = LambdaGrid(min=0.30, max=0.70, step=0.04)
    """The λ grid: {min, max, step}, or a list."""
    pairs: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    """all, or how many pairs to sample (seeded, without replacement, never listed)."""
    search: Literal["interpolated", "exhaustive"] = "interpolated"
    """exhaustive: score every λ of every pair. interpolated: score two λ of every pair, guess the others from them and
    from the pair's two images, and score the pairs that look best exactly; where that at least halves the work."""
    keep: Annotated[float, Field(ge=1)] = 5.0
    """interpolated: score so many times as many pairs exactly as are chosen; 40,000 at least, or a fortieth of the
    pool."""
    min_recall: Annotated[float, Field(ge=0, lt=1)] = 0.97
    """interpolated: where fewer of the truly best are found, by an estimate, double `keep` until they are."""
    mixing: Literal["auto", "pixels", "first-layer"] = "auto"
    """Where candidates are mixed to be scored (what is bought is always mixed as pixels): as pixels; or behind the
    student's first layer, which scores them before their pixels are rounded. auto: the latter on CPUs, for students
    with much of their work in that layer (lenet5)."""
    audit: Annotated[float, Field(ge=0, le=1)] = 0.15
    """interpolated: estimate what was found by scoring a sample of the other pairs, so large a share of the pairs
    scored exactly (200 at least; four times as many where it seems too little was found); 0 estimates nothing."""

    @field_validator("lambdas")
    @classmethod
    def _grid_is_usable(cls, value: LambdaGrid | list[float]) -> LambdaGrid | list[float]:
        try:
            check_lambdas(value.values() if isinstance(value, LambdaGrid) else value)
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("pool.lambdas: ")) from None
        return value

    @model_validator(mode="after")
    def _images_are_not_mixed(self) -> "PoolConfig":
        if self.kind == "images":
            changed = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
            if others := [name for name in changed if name != "kind"]:
                raise ValueError(f"pool.{others[0]} is for kind mixup; with pool.kind = images leave it out")
        return self

    def grid(self) -> tuple[float, ...]:
        """The λ values, in order."""
        return self.lambdas.values() if isinstance(self.lambdas, LambdaGrid) else tuple(self.lambdas)


class TrainerConfig(Section):
    """Where the student is trained."""

    where: Literal["auto", "driver", "worker"] = "auto"
    """driver: in the process that runs the loop. worker: in a Ray actor with `gpus`. auto: a worker where gpus is set
    or the cluster has a GPU the driver lacks, else the driver."""
    threads: Threads = "auto"
    """CPU threads of the student's training. Results depend on it in the last bits, so auto is resolved once, to 1 for
    lenet5 and small-cnn and to all cores for larger networks, and written into the run's config.yaml."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs of a training worker; may be a fraction."""


class ResourcesConfig(Section):
    """What Ray may use. None of it changes what is chosen, except where it says so."""

    scoring_workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Scoring actors, one CPU each; auto: one for each free CPU of the cluster."""
    scoring_gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs of one scoring actor; may be a fraction."""
    scoring_precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of scoring; auto: float32 on CPUs, bfloat16 or float16 on GPUs. Changes scores in the last bits."""
    scoring_compile: Literal["auto", "on", "off"] = "auto"
    """Compile the student for scoring; auto: on GPUs only. Changes scores in the last bits."""
    teacher_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Teacher actors; auto: as many as scoring workers for a local teacher, else one. 0 asks from the driver."""
    trainer: TrainerConfig = TrainerConfig()
    """Where and with how many threads the student is trained."""
    chunk: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Images a scoring task, about: what is lost when a worker dies. auto: about a second's work."""


class Config(Section):
    """One experiment."""

    seed: Annotated[int, Field(ge=0)] = 0
    """The root of all randomness."""
    images: ImagesConfig
    """The user's unlabelled images."""
    labelled: ImagesConfig | None = None
    """Images with true labels: they are trained on in every round, next to what is bought, and cost nothing (the set A
    of RAD's Algorithm 1)."""
    validation: ImagesConfig | None = None
    """Labelled images on which the teacher's error is measured, where `select.m` is to be estimated; never trained
    on."""
    test: ImagesConfig | None = None
    """Labelled images to measure the student on; never trained on, never used to stop."""
    teacher: TeacherConfig
    """Who answers queries."""
    budget: BudgetConfig
    """What may be spent."""
    ledger: LedgerConfig = LedgerConfig()
    """Where what was bought is kept."""
    pool: PoolConfig = PoolConfig()
    """The candidates."""
    select: SelectConfig = SelectConfig()
    """The choice among them."""
    student: StudentConfig = StudentConfig()
    """What is trained."""
    resources: ResourcesConfig = ResourcesConfig()
    """What Ray may use."""

    @model_validator(mode="after")
    def _rounds_have_queries(self) -> "Config":
        if self.select.per_round is not None and self.select.rounds == 0:
            raise ValueError("select.per_round is set, but select.rounds is 0; set select.rounds to at least 1")
        return self

    @model_validator(mode="after")
    def _a_teacher_is_trained_on_something(self) -> "Config":
        recipe = self.teacher.train if self.teacher.kind == "local" else None
        if recipe is not None and recipe.images is None and self.labelled is None:
            raise ValueError(
                "teacher.train.images is missing, and there is no labelled set: say what the teacher is trained on"
            )
        return self

    @model_validator(mode="after")
    def _the_choice_suits_the_pool(self) -> "Config":
        choice, pool = self.select, self.pool
        if choice.strategy == "unixkd" and pool.kind != "mixup":
            raise ValueError("select.strategy: unixkd buys mixes of images; set pool.kind to mixup")
        if choice.strategy == "unixkd" and pool.pairs != "all":
            raise ValueError("select.strategy: unixkd mixes any image with any other; set pool.pairs to all")
        if choice.first == 0 and self.labelled is None:
            raise ValueError("select.first: 0 leaves nothing to train on in round 0; raise it, or give labelled images")
        if choice.estimates and choice.first == 0 and self.validation is None and pool.kind == "mixup":
            raise ValueError(
                "select.m: mistakes on mixes show by what the teacher says of their two images, and select.first is 0; "
                "give labelled images as validation, or set select.m to a share such as 0.05"
            )
        if choice.estimates and pool.kind == "images" and self.validation is None:
            raise ValueError(
                "select.m: nobody can tell where a teacher errs on real images without knowing what they show; give "
                "labelled images as validation, or set select.m to a number or a share (RAD takes 0.05 there)"
            )
        return self
