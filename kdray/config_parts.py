"""Parts of the config that several sections share: images and training. Defaults live in the config modules alone."""

import difflib
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from kdray.images import parse_rows
from kdray.students.models import ZOO


class Section(BaseModel):
    """A section: unknown keys are refused, and nothing in it changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


Classes = Annotated[int, Field(ge=2)] | Annotated[list[str], Field(min_length=2)]
Threads = Annotated[int, Field(ge=1)] | Literal["auto"]


def known_device(value: str) -> str:
    """A device's name, or ValueError."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError(f"{value!r} is not a device; use auto, cpu, cuda or cuda:N")
    return value


def _square(value: Any) -> Any:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


class _Images(Section):
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


class AugmentConfig(Section):
    """Changes made to an image each time it is trained on. Its answer is kept: nothing is asked again."""

    shift: Annotated[int, Field(ge=0)] = 0
    """Largest shift in pixels, each way, in both directions (a random crop of the padded image)."""
    flip: bool = False
    """Mirror left-right half of the time. Leave off where left and right mean something, as in digits."""


class EarlyStopConfig(Section):
    """Stop when a held-out part of the *labelled set* stops improving. Test labels are never looked at."""

    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the labelled set held out."""
    patience: Annotated[int, Field(ge=1)] = 10
    """Epochs without a lower held-out loss before training stops; the best weights are kept."""


class TrainConfig(Section):
    """How a network is trained: SGD with Nesterov momentum."""

    epochs: Annotated[int, Field(ge=1)] = 40
    """Passes over the labelled set."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images a step, at most: an epoch is cut into batches of one size, give or take one image."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """Peak learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Nesterov momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """L2 penalty on weights; biases and normalisation layers are left out."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 2.0
    """Longer gradients are cut to this length; null cuts none. On few images a single one may undo all training."""
    loss: Literal["cross-entropy", "kl"] = "cross-entropy"
    """cross-entropy: with the answers as soft labels. kl: Kullback-Leibler divergence from the answers; at
    temperature 1 it has the same gradients."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """kl: answers and student are softened by it (Hinton et al., 2015)."""
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    """How the learning rate moves: up for a quarter and down to zero, or down from the start."""
    augment: AugmentConfig = AugmentConfig()
    """Random shifts and flips."""
    early_stop: EarlyStopConfig | None = None
    """Null trains all epochs."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto takes a GPU where there is one."""

    _device = field_validator("device")(known_device)

    @model_validator(mode="after")
    def _only_kl_is_softened(self) -> "TrainConfig":
        if self.temperature != 1.0 and self.loss != "kl":
            raise ValueError(f"temperature is {self.temperature:g}, but loss is {self.loss}; set loss to kl")
        return self


def known_model(value: str) -> str:
    """A name of the zoo, or ValueError with the nearest one."""
    if value not in ZOO:
        near = difflib.get_close_matches(value, ZOO, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"no model named {value!r}{hint} There are: {', '.join(sorted(ZOO))}")
    return value
