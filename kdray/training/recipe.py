"""The config sections that say how a network is trained."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from kdray.models.base import ModelName
from kdray.sections.base import Device, Section
from kdray.training.augment.auto import Auto
from kdray.training.augment.base import Augment, augments
from kdray.training.augment.crop import Crop
from kdray.training.balance import Balance
from kdray.training.losses.base import Loss, losses, student_losses
from kdray.training.mix import Mix
from kdray.training.unpaid import Unpaid


class EarlyStop(Section):
    """Stop when a held-out part of the *labelled set* stops improving. Test labels are never looked at."""

    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the labelled set held out."""
    patience: Annotated[int, Field(ge=1)] = 10
    """Epochs without a lower held-out loss before training stops; the best weights are kept."""


class Recipe(Section):
    """How a network is trained."""

    steps: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Optimisation steps. auto: by the number of answers, see docs/training.md."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over the labelled set, instead of steps."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images a step, at most: an epoch is cut into batches of one size, give or take one image."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov momentum, or AdamW."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; null: 0.05 with sgd, 0.003 with adamw."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Nesterov momentum; the decay of the first moment with adamw."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Decay of weights; biases and normalisation layers are left out. null: 0.0005 with sgd (an L2 penalty), 0.05 with
    adamw (decoupled)."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 2.0
    """Longer gradients are cut to this length; null cuts none. On few images a single one may undo all training."""
    loss: Annotated[Loss, losses] = Field(default_factory=losses.default)
    """The loss: its kind alone, or a section with its kind and its other fields."""
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    """How the learning rate moves: up for a quarter and down to zero, down from the start, or not at all."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep the exponential moving average of the weights, with this decay a step; null keeps the last weights."""
    augment: Annotated[Augment, augments] = Field(default_factory=Crop)
    """How images are changed each time they are trained on: its kind alone, or a section."""
    mix: Mix | None = None
    """Mix images of a batch with each other; null: not."""
    balance: Balance = "none"
    """How often images of rare classes are trained on; an image's class is the top class of its answer. none: as often
    as others. equal: so often that all classes that have answers count alike. replicate: they are repeated up to the
    mean number of images of a class. An image is trained on at most ten times as often as without."""
    early_stop: EarlyStop | None = None
    """Null trains all steps."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward pass; auto: bfloat16 on GPUs that have it, else float32. Weights are float32."""
    cuda_graphs: bool = True
    """On a GPU, record the steps once and replay them, if all code in them is kdray's own: small networks train several
    times as fast."""
    compile: bool = False
    """Compile the network with torch.compile, which takes about a minute: worth it for long trainings on a GPU."""
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N; auto takes a GPU where there is one."""

    @model_validator(mode="before")
    @classmethod
    def _steps_or_epochs(cls, data: Any) -> Any:
        """Steps that are given replace epochs that are not."""
        if isinstance(data, Mapping) and data.get("steps", "auto") != "auto":
            if data.get("epochs") is not None:
                steps, epochs = data["steps"], data["epochs"]
                raise ValueError(f"steps is {steps} and epochs {epochs}; set steps to auto or epochs to null")
            return {**data, "epochs": None}
        return data

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return self.lr if self.lr is not None else {"sgd": 0.05, "adamw": 3e-3}[self.optimizer]

    @property
    def decay(self) -> float:
        """The weight decay."""
        return self.weight_decay if self.weight_decay is not None else {"sgd": 5e-4, "adamw": 0.05}[self.optimizer]


_COLOUR = 4.0
"""`steps_factor` of colour images (benchmarks/steps.py)."""


class StudentSection(Recipe):
    """The student, trained each round, by default anew and on all that has been bought."""

    path_fields: ClassVar[tuple[str, ...]] = ("init",)

    model: ModelName = "small-cnn"
    """A network of kdray's zoo or one of torchvision's classifiers by name (docs/models.md), or a class or function of
    your own as module:object."""
    init: str | None = None
    """A file of weights that each round's student starts from: safetensors, or a torch state dict (.pt, .pth). Its last
    layer is left out where it has another number of classes. null starts from random weights."""
    start: Literal["new", "last"] = "new"
    """What each round's student starts from. new: fresh weights, or those of `init`. last: the student of the round
    before, so that one student is trained further and further (IDEAL)."""
    replay: Literal["all", "none"] = "all"
    """What each round's student is trained on. all: all that has been bought, with the answers that were paid for once.
    none: what that round has bought, and `labelled`; `start` must then be last."""
    loss: Annotated[Loss, student_losses] = Field(default_factory=student_losses.default)
    """The loss: its kind alone, or a section with its kind and its other fields."""
    augment: Annotated[Augment, augments] = Field(default_factory=Auto)
    """How images are changed each time they are trained on: its kind alone, or a section; none: not."""
    recipe: Literal["given", "auto"] = "given"
    """auto: optimiser and learning rate are the ones with which students agree best with answers that were held out;
    the fields here are one of the choices."""
    steps_factor: Annotated[float, Field(gt=0)] | None = None
    """What steps: auto is multiplied by. null: 4 where images have colours, from which students learn for longer, else
    1; see docs/training.md."""
    early: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the steps in rounds before the last, whose students only choose."""
    labels: Literal["reuse", "requery"] = "reuse"
    """What an augmented image is trained on. reuse: the answer to the image. requery: the last round asks about
    augmented copies of what was bought, and its student sees images and copies as they were asked about."""
    requery_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """With requery: share of the queries after round 0, and after a trial of kinds, that is for the copies."""
    unpaid: Unpaid | None = None
    """Train on candidates that students label, too; null: on bought answers alone."""

    @model_validator(mode="after")
    def _copies_differ(self) -> "StudentSection":
        if self.labels == "requery" and (self.augment.kind == "auto" or not self.augment.changes):
            raise ValueError(
                f"labels is requery, which asks about augmented copies, but augment is {self.augment.kind}"
                f"{'' if self.augment.changes else ', which changes nothing'}; name an augmentation such as affine, or "
                "set labels to reuse"
            )
        judges = {"recipe is auto": self.recipe == "auto", "early_stop is set": self.early_stop is not None}
        if self.labels == "requery" and (told := next((text for text, judged in judges.items() if judged), None)):
            raise ValueError(
                f"{told}, which judges by answers that are held out, but labels is requery: copies of the images that "
                "are held out would be trained on; leave it out, or set labels to reuse"
            )
        return self

    @model_validator(mode="after")
    def _one_student_goes_on(self) -> "StudentSection":
        if self.replay == "none" and self.start != "last":
            raise ValueError(
                "replay is none, and a student that starts anew would learn nothing of earlier rounds; set start to "
                "last, or replay to all"
            )
        if self.start != "last":
            return self
        others = {
            "recipe is auto": self.recipe == "auto",
            "augment is auto": self.augment.kind == "auto",
            "unpaid is set": self.unpaid is not None,
        }
        if first := next((name for name, there in others.items() if there), None):
            raise ValueError(
                f"start is last, and {first}, which trains other students beside this one from the start; set start to "
                f"new, or {first.split()[0]} to {'null' if first.endswith('set') else 'one of its kinds'}"
            )
        return self

    def for_images(self, image_shape: tuple[int, int, int]) -> "StudentSection":
        """This section for images (C, H, W): with a number as `steps_factor`."""
        if self.steps_factor is not None:
            return self
        return self.model_copy(update={"steps_factor": _COLOUR if image_shape[0] > 1 else 1.0})

    def variants(self) -> dict[str, dict[str, Any]]:
        """Changes of the recipe that `recipe: auto` tries, by name; the first changes nothing."""
        return {
            "as given": {},
            f"lr {self.rate / 2:g}": {"lr": self.rate / 2},
            f"lr {self.rate * 2:g}": {"lr": self.rate * 2},
            "ema 0.99": {"ema": 0.99},
            "sgd" if self.optimizer == "adamw" else "adamw": {
                "optimizer": "sgd" if self.optimizer == "adamw" else "adamw",
                "lr": None,
                "weight_decay": None,
            },
        }
