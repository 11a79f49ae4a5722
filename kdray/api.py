"""The Python interface of kdray: one function, for notebooks, scripts and sweeps."""

import hashlib
import itertools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdray.config.load import parse_config
from kdray.errors import ConfigError, ImageSetError
from kdray.images.base import ImageSet
from kdray.observers.display import make_display
from kdray.runs.class_count import find_class_count
from kdray.runs.directory import RunDirectory, runs_folder
from kdray.runs.inputs import InMemoryInputs, read_pool, resolve
from kdray.runs.result import Result
from kdray.runs.run import run


def distil(
    teacher: Callable[[np.ndarray], Any] | Mapping[str, Any],
    images: Any,
    budget: int | Mapping[str, Any] = 1000,
    *,
    labelled: Any = None,
    validation: Any = None,
    test: Any = None,
    classes: int | list[str] | None = None,
    teacher_options: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    local: bool | None = None,
    progress: bool = True,
    **config: Any,
) -> Result:
    """Distil `teacher` into a student with at most `budget` queries.

    Args:
        teacher: a function that maps uint8 [B, C, H, W] (numpy) to probabilities [B, K] or labels [B]; or a `teacher`
            section of a config. A function is called in this process.
        images: unlabelled images, uint8 array or tensor, [N, C, H, W], [N, H, W, C] or [N, H, W]; or an `images`
            section.
        budget: maximum number of training queries, or a `budget` section.
        labelled: (images, labels) on which the student is trained in every round and which cost no queries, or a
            `labelled` section.
        validation: (images, labels) on which the teacher's error is measured for RAD, or a `validation` section.
        test: (images, labels) on which the student's accuracy is measured; or images alone, on which its agreement with
            the teacher is measured, with at most `budget["evaluation"]` queries; or a `test` section.
        classes: number or names of the classes of a function. Without it, one query for the first image finds their
            number. It is charged and recorded like any other query.
        teacher_options: further fields of the `teacher` section of a function: `answers` ("hard" for a function that
            returns labels; needs `classes`), `batch_size`, `input`, `limits`, `metered`, `name`.
        out: run directory. The same call with the same directory resumes the run. None makes a new directory.
        local: True runs everything in this process, False uses Ray. None uses Ray if this process is connected to it or
            RAY_ADDRESS is set.
        progress: show progress on standard error.
        config: further sections and fields, as in the YAML: `select={"rounds": 3}`, `student={"epochs": 20}`, `seed=1`.

    Returns:
        The result: `student` (an nn.Module), `labelled`, `history` of rounds, `receipt`, `directory`.

    Raises:
        KdrayError: see `kdray.runs.run.run`.
    """
    directory = RunDirectory(out) if out is not None else _free_directory()
    data: dict[str, Any] = dict(config)
    data["budget"] = dict(budget) if isinstance(budget, Mapping) else {"queries": budget}
    image_set, with_labels = None, {}
    if isinstance(images, Mapping):
        data["images"] = dict(images)
    else:
        image_set = ImageSet(images=as_images(images, "images"))
        data["images"] = _kept_in(directory, "images", image_set)
    for name, value in (("labelled", labelled), ("validation", validation), ("test", test)):
        if isinstance(value, Mapping):
            data[name] = dict(value)
        elif value is not None:
            alone = name == "test" and isinstance(value, np.ndarray | torch.Tensor)
            with_labels[name] = ImageSet(images=as_images(value, name)) if alone else _labelled(value, name)
            data[name] = _kept_in(directory, name, with_labels[name])
    function = None
    if isinstance(teacher, Mapping):
        data["teacher"] = dict(teacher)
    elif callable(teacher):
        function = teacher
        data["teacher"], data["resources"] = _function_sections(
            teacher, {**(teacher_options or {}), "classes": classes}, directory, image_set, data
        )
    else:
        raise ConfigError(f"teacher: expected a function or a mapping, got {type(teacher).__name__}")
    parsed = parse_config(data, origin="kdray.distil")
    return run(
        parsed,
        directory,
        local=_no_ray() if local is None else local,
        observer=make_display() if progress else None,
        in_memory=InMemoryInputs(images=image_set, function=function, **with_labels),
    )


def as_images(array: Any, field: str) -> torch.Tensor:
    """An array or tensor of images as uint8 [N, C, H, W].

    Raises:
        ImageSetError: the array is not uint8, or its shape is not [N, C, H, W], [N, H, W, C] or [N, H, W] with 1 or 3
            channels.
    """
    tensor = array.detach().cpu() if isinstance(array, torch.Tensor) else torch.from_numpy(np.array(array))
    if tensor.dtype != torch.uint8:
        raise ImageSetError(
            f"{field}: pixels must be uint8 in 0..255, got {tensor.dtype}; scale and convert them first"
        )
    if tensor.ndim == 3:
        tensor = tensor.unsqueeze(1)
    if tensor.ndim == 4 and tensor.shape[1] not in (1, 3) and tensor.shape[3] in (1, 3):
        tensor = tensor.permute(0, 3, 1, 2)
    if tensor.ndim != 4 or tensor.shape[1] not in (1, 3):
        raise ImageSetError(f"{field}: expected [N, C, H, W] with 1 or 3 channels, got {list(tensor.shape)}")
    return tensor.contiguous()


def _labelled(pair: Any, field: str) -> ImageSet:
    try:
        images, labels = pair
    except (TypeError, ValueError):
        raise ImageSetError(f"{field}: expected a pair (images, labels) or a mapping") from None
    labels = torch.as_tensor(np.asarray(labels)).to(torch.int64)
    return ImageSet(images=as_images(images, field), labels=labels)


def _kept_in(directory: RunDirectory, name: str, data: ImageSet) -> dict[str, str]:
    """The config section of an array: a file in the run directory.

    The name of the file contains a hash of the images, so other images give another config.
    """
    digest = hashlib.blake2b(data.images.numpy().tobytes(), digest_size=6)
    if data.labels is not None:
        digest.update(data.labels.numpy().tobytes())
    return {"source": "parquet", "path": str(directory.path / "inputs" / f"{name}-{digest.hexdigest()}.parquet")}


def _function_sections(
    function: Callable[..., Any],
    options: dict[str, Any],
    directory: RunDirectory,
    images: ImageSet | None,
    data: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sections `teacher` and `resources` for a function, which exists only in this process."""
    module = getattr(function, "__module__", None) or "python"
    qualified = f"{module}:{getattr(function, '__qualname__', type(function).__name__)}"
    options = {"kind": "python", "function": qualified, "answers": "soft"} | options
    if options["classes"] is None:
        if images is None or options["answers"] == "hard":
            raise ConfigError(
                "classes: give the number or the names of the teacher's classes; kdray can find their number only with "
                "images as an array and a function that returns probabilities"
            )
        ledger = Path((data.get("ledger") or {}).get("path") or directory.ledger)
        # The account is opened here, so its limit must be known. The whole config is checked for that.
        assumed = data | {"teacher": options | {"classes": 2}}
        resolved = resolve(parse_config(assumed, origin="kdray.distil"))
        planned = read_pool(resolved, images)
        budget = data["budget"]["queries"] - planned.estimate
        options["classes"] = find_class_count(
            function,
            options.get("name") or qualified,
            options["answers"],
            options.get("decimals"),
            image=resolved.teacher.input.view(images.images[:1]),
            directory=directory,
            ledger_path=ledger,
            budget=budget,
        )
    return options, dict(data.get("resources") or {}) | {"teacher_workers": 0}


def _no_ray() -> bool:
    """Whether there is no Ray cluster to use. This does not import Ray."""
    connected = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    return not connected and not os.environ.get("RAY_ADDRESS")


def _free_directory() -> RunDirectory:
    numbers = itertools.count(1)
    return next(RunDirectory(path) for k in numbers if not (path := runs_folder() / f"distil-{k}").exists())
