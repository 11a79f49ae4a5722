"""The Python interface of kdray: one function, for notebooks, scripts and sweeps."""

import hashlib
import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kdray.config.load import load_config, parse_config
from kdray.errors import ConfigError, ImageSetError
from kdray.images.arrays import are_images, as_labelled, as_unlabelled
from kdray.images.base import ImageSet
from kdray.observers import Observer, Observers
from kdray.observers.display import make_display
from kdray.runs.class_count import find_class_count
from kdray.runs.directory import RunDirectory, runs_folder
from kdray.runs.inputs import InMemoryInputs
from kdray.runs.result import Result
from kdray.runs.run import check, run
from kdray.runs.tracked import make_trackers, trackings
from kdray.sections.classes import are_numbers
from kdray.teachers.function import PythonTeacherConfig, own_name, shown_name


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
    track: Sequence[str] = (),
    **config: Any,
) -> Result:
    """Distil `teacher` into a student with at most `budget` queries.

    Args:
        teacher: a function that maps uint8 [B, C, H, W] (numpy) to probabilities [B, K] or labels [B]; or a `teacher`
            section of a config. A function is called in this process.
        images: unlabelled images, uint8 array or tensor, [N, C, H, W], [N, H, W, C] or [N, H, W]; a list of PIL images
            (of several frames the first is taken); or an `images` section.
        budget: maximum number of training queries, or a `budget` section.
        labelled: (images, labels) on which the student is trained in every round and which cost no queries, or a
            `labelled` section. Labels are whole numbers [N] or [N, 1], or text [N], the names of classes.
        validation: (images, labels) on which the teacher's error is measured for RAD, or a `validation` section.
        test: (images, labels) on which the student's accuracy is measured; or images alone, on which its agreement with
            the teacher is measured, with at most `budget["evaluation"]` queries; or a `test` section.
        classes: number or names of the classes of a function. Without it, one query for the first image finds their
            number. It is charged and recorded like any other query.
        teacher_options: further fields of the `teacher` section of a function: `answers` ("hard" for a function that
            returns labels; needs `classes`), `batch_size`, `input`, `limits`, `metered`, `name`. With
            `ledger={"path": ...}` a function that is not a plain function of an importable module needs a `name`: two
            lambdas, closures, partials or methods could not be told apart there.
        out: run directory. The same call with the same directory resumes the run. None makes a new directory.
        local: True runs everything in this process, False uses Ray. None uses Ray if this process is connected to it or
            RAY_ADDRESS is set.
        progress: show progress on standard error.
        track: trackers that are told of the figures: "wandb", "mlflow", or both.
        config: further sections and fields, as in the YAML: `select={"rounds": 3}`, `student={"epochs": 20}`, `seed=1`.

    Returns:
        The result: `student` (an nn.Module), `labelled`, `history` of rounds, `receipt`, `directory`.

    Raises:
        KdrayError: see `kdray.runs.run.run`.
    """
    make_trackers(track)
    function = None
    if isinstance(teacher, Mapping):
        if classes is not None or teacher_options:
            wrong = "teacher_options" if classes is None else "classes"
            raise ConfigError(f"{wrong} belongs to a function; write it into the teacher's section")
        config["teacher"] = dict(teacher)
    elif callable(teacher):
        function = teacher
    else:
        raise ConfigError(f"teacher: expected a function or a mapping, got {type(teacher).__name__}")
    directory = RunDirectory(out) if out is not None else _free_directory()
    data: dict[str, Any] = dict(config)
    data["budget"] = dict(budget) if isinstance(budget, Mapping) else {"queries": budget}
    image_set, with_labels = None, {}
    if isinstance(images, Mapping):
        data["images"] = dict(images)
    else:
        image_set = as_unlabelled(images, "images")
        data["images"] = _kept_in(directory, "images", image_set)
    for name, value in (("labelled", labelled), ("validation", validation), ("test", test)):
        if isinstance(value, Mapping):
            data[name] = dict(value)
        elif value is not None:
            alone = name == "test" and are_images(value)
            with_labels[name] = as_unlabelled(value, name) if alone else _labelled(value, name)
            data[name] = _kept_in(directory, name, with_labels[name])
    given = InMemoryInputs(images=image_set, function=function, **with_labels)
    if function is not None:
        ledger = data.get("ledger")
        shared = ledger.get("path") if isinstance(ledger, Mapping) else None
        data["teacher"] = _function_options(function, teacher_options or {}, classes, shared)
        # The function exists only in this process.
        if isinstance(resources := data.get("resources") or {}, Mapping):
            data["resources"] = {**resources, "teacher_workers": 0}
        _check_text_labels(with_labels, data["teacher"].get("classes"))
        if data["teacher"].get("classes") is None:
            data["teacher"]["classes"] = _count_classes(function, data, directory, given)
    parsed = parse_config(data, origin="kdray.distil")
    shown = make_display() if progress else Observer()
    observer = Observers([shown, *trackings(track, directory, shown)])
    return run(
        parsed,
        directory,
        local=_no_ray() if local is None else local,
        observer=observer,
        in_memory=given,
    )


def _labelled(pair: Any, field: str) -> ImageSet:
    try:
        images, labels = pair
    except (TypeError, ValueError):
        raise ImageSetError(f"{field}: expected a pair (images, labels) or a mapping") from None
    return as_labelled(images, labels, field)


def _check_text_labels(sets: Mapping[str, ImageSet], classes: Any) -> None:
    """Refuse labels that are names where the function's classes have none."""
    for field, data in sets.items():
        if data.classes and not are_numbers(data.classes) and not isinstance(classes, list | tuple):
            raise ImageSetError(
                f"{field}: its labels are text ({', '.join(map(repr, data.classes[:3]))}, ...), but the teacher's "
                "classes have no names; give classes=[...], the names in the order of its probabilities"
            )


def _kept_in(directory: RunDirectory, name: str, data: ImageSet) -> dict[str, str]:
    """The config section of an array: a file in the run directory.

    The name of the file contains a hash of the images, so other images give another config.
    """
    digest = hashlib.blake2b(data.images.numpy().reshape(-1).data, digest_size=6)
    if data.labels is not None:
        digest.update(data.labels.numpy().tobytes())
    if data.classes is not None:
        digest.update(repr(data.classes).encode())
    return {"source": "parquet", "path": str(directory.path / "inputs" / f"{name}-{digest.hexdigest()}.parquet")}


def _function_options(
    function: Callable[..., Any], given: Mapping[str, Any], classes: Any, shared: str | None
) -> dict[str, Any]:
    """The section `teacher` for a function; `classes` may be None.

    Args:
        given: the user's `teacher_options`.
        shared: path of a ledger that other runs may use too.

    Raises:
        ConfigError: options that the function itself decides, or a function that cannot be told apart on `shared`.
    """
    if own := [name for name in ("kind", "function") if name in given]:
        raise ConfigError(f"teacher_options: {own[0]} is decided by the function itself; leave it out")
    if classes is not None and given.get("classes") is not None:
        raise ConfigError("classes is given twice, also in teacher_options; keep one of them")
    if shared is not None and given.get("name") is None and own_name(function) is None:
        raise ConfigError(
            f"teacher_options: {shown_name(function)} has no name that tells it from others like it, and on the shared "
            f"ledger {shared} it would get their answers; name the model behind it: "
            'teacher_options={"name": "my-model-1"}'
        )
    options = {"kind": "python", "function": shown_name(function), "answers": "soft", **given}
    return options if classes is None else options | {"classes": classes}


def _count_classes(
    function: Callable[..., Any], data: dict[str, Any], directory: RunDirectory, sets: InMemoryInputs
) -> Any:
    """The `classes` of a function: of the run that is here already, or their number, from one query.

    Raises:
        KdrayError: all that is wrong and can be found out before that query.
    """
    options = data["teacher"]
    if directory.is_run():
        recorded = load_config(directory.config).teacher
        if isinstance(recorded, PythonTeacherConfig):
            return recorded.classes
    if sets.images is None or options["answers"] == "hard":
        raise ConfigError(
            "classes: give the number or the names of the teacher's classes; kdray can find their number only with "
            "images as an array and a function that returns probabilities"
        )
    config = parse_config(data | {"teacher": options | {"classes": 2}}, origin="kdray.distil")
    checked = check(config, directory, in_memory=sets)
    return find_class_count(
        function,
        options.get("name") or options["function"],
        config.teacher.answers,
        config.teacher.decimals,
        image=config.teacher.input.view(sets.images.images[:1]),
        directory=directory,
        ledger_path=directory.ledger_of(config.ledger),
        budget=config.budget.queries - checked.pooled.estimate,
    )


def _no_ray() -> bool:
    """Whether there is no Ray cluster to use. This does not import Ray."""
    connected = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    return not connected and not os.environ.get("RAY_ADDRESS")


def _free_directory() -> RunDirectory:
    numbers = itertools.count(1)
    return next(RunDirectory(path) for k in numbers if not (path := runs_folder() / f"distil-{k}").exists())
