"""kdray from Python: one call, for notebooks, scripts and sweeps."""

import hashlib
import itertools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdray.artefacts import RunDirectory
from kdray.config_file import parse_config
from kdray.display import make_display
from kdray.errors import ConfigError, ImageSetError, TeacherError
from kdray.images import ImageSet
from kdray.inputs import Given, read_candidates, resolve
from kdray.ledger.store import Ledger, hash_images
from kdray.paths import runs_folder
from kdray.run import Result, run
from kdray.teachers.answers import AnswerFormat, Answers
from kdray.teachers.function import FunctionTeacher, to_array


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
    out: str | os.PathLike | None = None,
    local: bool | None = None,
    progress: bool = True,
    **config: Any,
) -> Result:
    """Distil `teacher` into a student, asking it at most `budget` times.

    Args:
        teacher: a function of uint8 [B, C, H, W] (numpy) that gives probabilities [B, K] or labels [B]; or a `teacher`
            section of a config. A function is asked in this process.
        images: uint8 array or tensor, [N, C, H, W], [N, H, W, C] or [N, H, W], unlabelled; or an `images` section.
        budget: most training queries, or a `budget` section.
        labelled: (images, labels) that cost nothing and are trained on in every round, or a `labelled` section.
        validation: (images, labels) on which the teacher's error is measured for RAD, or a `validation` section.
        test: (images, labels) to measure the student on, or a `test` section.
        classes: number or names of a function's classes. Where not given, the first image is asked to find out: a
            query like any other, charged and kept.
        teacher_options: further fields of a function's `teacher` section: `answers` ("hard" for one that gives labels;
            needs `classes`), `batch_size`, `limits`, `metered`, `name`.
        out: run directory; the same call with the same directory goes on where it stopped.
        local: all in this process, or on Ray. None takes Ray where this process is connected to it or
            RAY_ADDRESS is set.
        progress: show progress on standard error.
        config: further sections and fields, as in the YAML: `select={"rounds": 3}`, `student={"epochs": 20}`, `seed=1`.

    Returns:
        The result: `student` (an nn.Module), `labelled`, `history` of rounds, `receipt`, `directory`.

    Raises:
        KdrayError: see `kdray.run.run`.
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
            with_labels[name] = _labelled(value, name)
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
        given=Given(images=image_set, function=function, **with_labels),
    )


def as_images(array: Any, field: str) -> torch.Tensor:
    """An array or tensor of images as uint8 [N, C, H, W].

    Raises:
        ImageSetError: not uint8, or not one of the shapes [N, C, H, W], [N, H, W, C], [N, H, W] with 1 or 3 channels.
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
    """The config section of an array: a file in the run directory, named after its content, so that other images are
    another config."""
    digest = hashlib.blake2b(data.images.numpy().tobytes(), digest_size=6)
    if data.labels is not None:
        digest.update(data.labels.numpy().tobytes())
    return {"source": "parquet", "path": str(directory.path / "inputs" / f"{name}-{digest.hexdigest()}.parquet")}


def _function_sections(
    function: Callable, options: dict[str, Any], directory: RunDirectory, images: ImageSet | None, data: dict
) -> tuple[dict, dict]:
    """`teacher` and `resources` for a function that only this process has."""
    module = getattr(function, "__module__", None) or "python"
    qualified = f"{module}:{getattr(function, '__qualname__', type(function).__name__)}"
    options = {"kind": "python", "function": qualified, "answers": "soft"} | options
    if options["classes"] is None:
        if images is None or options["answers"] == "hard":
            raise ConfigError(
                "classes: give the number or the names of the teacher's classes; they cannot be found out"
            )
        form = AnswerFormat(options["answers"], options.get("decimals"))
        identity = f"python:{options.get('name') or qualified}:{form}"
        ledger = Path((data.get("ledger") or {}).get("path") or directory.ledger)
        # The account is opened here, so what it may hold must be known, and with it all else that can be wrong.
        assumed = data | {"teacher": options | {"classes": 2}}
        planned = read_candidates(resolve(parse_config(assumed, origin="kdray.distil")), images)
        budget = data["budget"]["queries"] - planned.estimate
        options["classes"] = _discover(function, identity, form, directory, ledger, images.images[:1], budget)
    return options, dict(data.get("resources") or {}) | {"teacher_workers": 0}


def _discover(
    function: Callable,
    identity: str,
    form: AnswerFormat,
    directory: RunDirectory,
    path: Path,
    first: torch.Tensor,
    budget: int,
) -> int:
    """Number of classes, from the ledger at `path` or, once, by asking for the first image.

    Raises:
        TeacherError: the function fails, or gives labels, which do not tell how many classes there are.
    """
    key = hash_images(first)
    directory.lock()
    try:
        owner, ledger = directory.owner(), Ledger(path)
        try:
            known = ledger.lookup(identity, key)
            if not known:
                ledger.open_account(owner, {"training": budget})
                reservation = ledger.reserve(1, teacher=identity, owner=owner)
                try:
                    answers = _ask_once(function, identity, form, first)
                except BaseException:  # it was asked, whatever came of it
                    ledger.mark_uncertain(reservation)
                    raise
                ledger.commit(reservation, key, answers.rows())
                known = ledger.lookup(identity, key)
        finally:
            ledger.close()
    finally:
        directory.unlock()
    return len(known[key[0]][1])


def _ask_once(function: Callable, identity: str, form: AnswerFormat, image: torch.Tensor) -> Answers:
    try:
        reply = function(image.numpy())
    except Exception as error:  # whatever a user's function raises
        raise TeacherError(f"the teacher function failed: {type(error).__name__}: {error}") from error
    reply = to_array(reply)
    if reply.ndim != 2 or reply.dtype.kind != "f":
        raise TeacherError(
            f"the teacher function gives {reply.dtype} of shape {list(reply.shape)} for one image, "
            "which does not tell how many classes there are: give classes=, and "
            'teacher_options={"answers": "hard"} if it gives labels'
        )
    return (
        FunctionTeacher(lambda _: reply, identity=identity, num_classes=reply.shape[1], form=form)
        .answer(image)
        .believed()
    )


def _no_ray() -> bool:
    """Whether there is no cluster to work on. Looks for Ray only where it has been imported already."""
    connected = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    return not connected and not os.environ.get("RAY_ADDRESS")


def _free_directory() -> RunDirectory:
    numbers = itertools.count(1)
    return next(RunDirectory(path) for k in numbers if not (path := runs_folder() / f"distil-{k}").exists())
