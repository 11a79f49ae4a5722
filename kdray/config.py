"""The config: one YAML file an experiment, every field with its default and its meaning. Defaults live here alone."""

import difflib
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from kdray.errors import ConfigError
from kdray.images import parse_rows
from kdray.pools.mixup import check_lambdas
from kdray.students.models import ZOO


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


Classes = Annotated[int, Field(ge=2)] | Annotated[list[str], Field(min_length=2)]
Threads = Annotated[int, Field(ge=1)] | Literal["auto"]


def _known_device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError(f"{value!r} is not a device; use auto, cpu, cuda or cuda:N")
    return value


def _square(value: Any) -> Any:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


class _Images(_Section):
    rows: str | None = None
    """Half-open range of rows, "start:stop", taken before `count` is drawn; null takes all."""
    count: Annotated[int, Field(ge=1)] | None = None
    """How many images to draw (seeded, without looking at labels); null takes all."""
    size: (
        Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], BeforeValidator(_square)] | None
    ) = None
    """Resize to [height, width], or to one number squared; null leaves images as they are."""
    colour: Literal["grey", "rgb"] | None = None
    """Convert to this colour; null keeps grey grey and makes everything else RGB."""

    @field_validator("rows", mode="before")
    @classmethod
    def _rows_is_a_range(cls, value: Any) -> Any:
        if isinstance(value, int):  # YAML reads 10:50 without quotes as a number to base 60
            raise ValueError(f'input should be a range in quotes, for example rows: "0:1000"; YAML gave {value!r}')
        if isinstance(value, str):
            parse_rows(value)
        return value


class ParquetImages(_Images):
    """Hugging Face style parquet: struct column `image` or `img`, optional int64 `label`."""

    source: Literal["parquet"]
    path: str
    """A parquet file, or a folder of them."""


class FolderImages(_Images):
    """A folder of image files; subfolders, where there are any, are the classes."""

    source: Literal["folder"]
    path: str
    """The folder."""


class TorchvisionImages(_Images):
    """A torchvision data set."""

    source: Literal["torchvision"]
    name: str
    """Class name in torchvision.datasets, for example FashionMNIST."""
    root: str
    """Where its files lie."""
    split: Literal["train", "test", "val"] = "train"
    """Which part of it."""
    download: bool = False
    """Let torchvision download what is missing under `root`."""


class DigitsImages(_Images):
    """scikit-learn's digits, in a fixed random order."""

    source: Literal["digits"]


ImagesConfig = Annotated[ParquetImages | FolderImages | TorchvisionImages | DigitsImages, Field(discriminator="source")]


class AugmentConfig(_Section):
    """Changes made to an image each time it is trained on. Its answer is kept: nothing is asked again."""

    shift: Annotated[int, Field(ge=0)] = 0
    """Largest shift in pixels, each way, in both directions (a random crop of the padded image)."""
    flip: bool = False
    """Mirror left-right half of the time. Leave off where left and right mean something, as in digits."""


class EarlyStopConfig(_Section):
    """Stop when a held-out part of the *labelled set* stops improving. Test labels are never looked at."""

    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the labelled set held out."""
    patience: Annotated[int, Field(ge=1)] = 10
    """Epochs without a lower held-out loss before training stops; the best weights are kept."""


class TrainConfig(_Section):
    """How a network is trained: SGD with Nesterov momentum on soft-label cross entropy."""

    epochs: Annotated[int, Field(ge=1)] = 40
    """Passes over the labelled set."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images a step."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """Peak learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Nesterov momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """L2 penalty on weights; biases and normalisation layers are left out."""
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    """How the learning rate moves: up for a quarter and down to zero, or down from the start."""
    augment: AugmentConfig = AugmentConfig()
    """Random shifts and flips."""
    early_stop: EarlyStopConfig | None = None
    """Null trains all epochs."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto takes a GPU where there is one."""

    _device = field_validator("device")(_known_device)


def _known_model(value: str) -> str:
    if value not in ZOO:
        near = difflib.get_close_matches(value, ZOO, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"no model named {value!r}{hint} There are: {', '.join(sorted(ZOO))}")
    return value


class StudentConfig(TrainConfig):
    """The student, trained from scratch each round on all that has been bought."""

    model: Annotated[str, Field(validate_default=True)] = "lenet5"
    """A network of the zoo: see `kdray.students.models`."""

    _model = field_validator("model")(_known_model)


class TeacherTrainConfig(TrainConfig):
    """How to make a local teacher that is not there yet. Uses labels: these images are the teacher's own."""

    images: ImagesConfig
    """Labelled images the teacher is trained on."""
    threads: Threads = "auto"
    """CPU threads of the teacher's training; auto as for the student."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the teacher, apart from the run's: runs with other seeds share one teacher."""


class NormaliseConfig(_Section):
    """What a model from elsewhere expects of its input: (pixel / 255 - mean) / std, one number a channel."""

    mean: list[float]
    """Mean of each channel, in [0, 1]."""
    std: list[Annotated[float, Field(gt=0)]]
    """Standard deviation of each channel."""


class _Teacher(_Section):
    answers: str = "soft"
    """soft (all probabilities), hard (a label), or topK such as top5 (the K largest probabilities)."""
    decimals: Annotated[int, Field(ge=0, le=10)] | None = None
    """Round probabilities to so many decimals, as many APIs do; null does not."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images sent at a time: the most that can be lost when the driver dies."""
    rate_per_s: Annotated[float, Field(gt=0)] | None = None
    """Most images a second, over all teacher workers together; null sets no limit."""
    burst: Annotated[int, Field(ge=1)] | None = None
    """Images that may go at once after a pause; null means one batch."""

    @field_validator("answers")
    @classmethod
    def _known_answers(cls, value: str) -> str:
        if not re.fullmatch(r"soft|hard|top[1-9]\d*", value):
            raise ValueError(f"{value!r} is not a kind of answer; use soft, hard or topK (top5, for example)")
        return value


class LocalTeacher(_Teacher):
    """A model on this machine, seen only through its answers."""

    kind: Literal["local"]
    weights: str
    """safetensors for `model`; or, where `model` is null, a TorchScript or torch.export file."""
    model: str | None = None
    """A network of the zoo, or torchvision/NAME; null where `weights` is a whole program."""
    classes: Classes | None = None
    """Number or names of the classes; null reads them from weights that kdray saved."""
    input: Literal["uint8", "unit"] = "unit"
    """What a whole program takes: uint8 pixels, or floats in [0, 1] (then normalised, if `normalise` is set)."""
    outputs: Literal["logits", "probabilities"] = "logits"
    """What a whole program gives."""
    normalise: NormaliseConfig | None = None
    """Input normalisation of weights from elsewhere; kdray's own weights carry theirs."""
    train: TeacherTrainConfig | None = None
    """How to make `weights` when the file is not there."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    _device = field_validator("device")(_known_device)

    @field_validator("model")
    @classmethod
    def _model_is_known(cls, value: str | None) -> str | None:
        return value if value is None or value.startswith("torchvision/") else _known_model(value)


class PythonTeacher(_Teacher):
    """A Python function: uint8 [B, C, H, W] numpy array in, probabilities [B, K] or labels [B] out."""

    kind: Literal["python"]
    function: str
    """module:function, importable from where kdray runs."""
    classes: Classes
    """Number or names of the classes."""
    name: str | None = None
    """Who this is in the ledger; null uses `function`. Give a new name when the model behind it changes."""
    metered: bool = True
    """Somebody may bill for calls: a batch that was on its way when kdray died counts as charged."""

    @field_validator("function")
    @classmethod
    def _module_and_function(cls, value: str) -> str:
        if not re.fullmatch(r"[\w.]+:[\w.<>]+", value):
            raise ValueError(f"{value!r} is not of the form module:function")
        return value


TeacherConfig = Annotated[LocalTeacher | PythonTeacher, Field(discriminator="kind")]


class BudgetConfig(_Section):
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


_MAX_LAMBDAS = 10_000  # pixels have 256 values: a finer grid only repeats images


class LambdaGrid(_Section):
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


class PoolConfig(_Section):
    """The virtual pool of candidates."""

    kind: Literal["mixup"] = "mixup"
    """mixup: all pairs of the images, at every λ."""
    lambdas: LambdaGrid | list[float] = LambdaGrid(min=0.30, max=0.70, step=0.04)
    """The λ grid: {min, max, step}, or a list."""

    @field_validator("lambdas")
    @classmethod
    def _grid_is_usable(cls, value: LambdaGrid | list[float]) -> LambdaGrid | list[float]:
        try:
            check_lambdas(value.values() if isinstance(value, LambdaGrid) else value)
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("pool.lambdas: ")) from None
        return value

    def grid(self) -> tuple[float, ...]:
        """The λ values, in order."""
        return self.lambdas.values() if isinstance(self.lambdas, LambdaGrid) else tuple(self.lambdas)


class SelectConfig(_Section):
    """Which candidates are worth paying for."""

    strategy: Literal["active-mixup", "vanilla", "random"] = "active-mixup"
    """active-mixup: lowest C2, one candidate a pair (eq. 3). vanilla: lowest C1, no such rule (eq. 2). random: random
    pairs at the λ nearest 0.5."""
    rounds: Annotated[int, Field(ge=0)] = 1
    """T: selection rounds after round 0. 0 trains on the real images alone."""
    per_round: Annotated[int, Field(ge=1)] | None = None
    """Candidates chosen a round; null spreads what round 0 leaves of the budget evenly."""


class TrainerConfig(_Section):
    """Where the student is trained."""

    where: Literal["auto", "driver", "worker"] = "auto"
    """driver: in the process that runs the loop. worker: in a Ray actor with `gpus`. auto: a worker where gpus is set
    or the cluster has a GPU the driver lacks, else the driver."""
    threads: Threads = "auto"
    """CPU threads of the student's training. Results depend on it in the last bits, so auto is resolved once, to 1 for
    lenet5 and small-cnn and to all cores for larger networks, and written into the run's config.yaml."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs of a training worker; may be a fraction."""


class ResourcesConfig(_Section):
    """What Ray may use. None of it changes what is chosen, except `trainer.threads` in the last bits."""

    scoring_workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Scoring actors, one CPU each; auto: one for each free CPU of the cluster."""
    scoring_gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs of one scoring actor; may be a fraction."""
    teacher_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Teacher actors; auto: as many as scoring workers for a local teacher, else one. 0 asks from the driver."""
    trainer: TrainerConfig = TrainerConfig()
    """Where and with how many threads the student is trained."""
    chunk: Annotated[int, Field(ge=1)] = 8192
    """Candidates a scoring task, about: what is lost when a worker dies."""


class Config(_Section):
    """One experiment."""

    seed: Annotated[int, Field(ge=0)] = 0
    """The root of all randomness."""
    images: ImagesConfig
    """The user's unlabelled images."""
    test: ImagesConfig | None = None
    """Labelled images to measure the student on; never trained on, never used to stop."""
    teacher: TeacherConfig
    """Who answers queries."""
    budget: BudgetConfig
    """What may be spent."""
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


def schedule(budget: int, images: int, rounds: int, per_round: int | None) -> list[int]:
    """Queries of each round, round 0 first. Depends on the config alone, so a resumed run keeps to it.

    What round 0 leaves is spread evenly; the first rounds take one more where it does not divide.

    Raises:
        ConfigError: the budget does not pay for round 0, or for at least one candidate in every later round.
    """
    left = budget - images
    if left < 0:
        raise ConfigError(
            f"budget.queries: {budget:,} queries do not pay for round 0, which asks for all {images:,} images; "
            f"raise budget.queries to at least {images + rounds * (per_round or 1):,}, or lower images.count"
        )
    if rounds and left < rounds * (per_round or 1):
        raise ConfigError(
            f"budget.queries: after round 0 {left:,} of {budget:,} queries are left, too few for "
            f"select.rounds = {rounds} rounds of {per_round or 1:,}; "
            f"raise budget.queries to at least {images + rounds * (per_round or 1):,}"
        )
    if per_round is not None:
        return [images] + [per_round] * rounds
    return [images] + [left // rounds + (k < left % rounds) for k in range(rounds)]
