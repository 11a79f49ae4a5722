"""`kdray export`: the student of a run, or a model file, in a format of other software, checked against the student."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdray.errors import ConfigError, ExportError, KdrayError, RunDirectoryError
from kdray.export.base import About, Deployed, Format, check_temperature, find_format, largest_difference
from kdray.images.labels import with_teachers_labels
from kdray.models.checkpoint import ModelCard, load_student, read_own_card
from kdray.runs.directory import RunDirectory, find_student
from kdray.runs.inputs import read_test
from kdray.runs.result import Result, read_result
from kdray.runs.status import read_status
from kdray.utils.files import check_writable
from kdray.utils.seeds import numpy_generator

if TYPE_CHECKING:
    from kdray.export.int8 import Int8

_RANGES = 512  # bought images that set the ranges of 8 bits, at most
_CHECKED = 64  # images of the newest round that the exported file is checked on, at most


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        path: the file, or the folder.
        size: in bytes, of all files.
        difference: the largest difference of a probability from the student's.
        images: number of images that both answered.
        real: whether they are images that were bought; else random pixels.
        int8: what 8 bits cost and bring, where they were wanted; `difference` is then that of the 32 bits before.
    """

    path: Path
    size: int
    difference: float
    images: int
    real: bool
    int8: "Int8 | None" = None


def export(
    where: Path, name: str, out: Path | None = None, temperature: float = 1.0, *, int8: bool = False
) -> Exported:
    """Write a student in a format, and check that it says what the student says, in batches of 1, 2 and 7.

    Args:
        where: a finished run, or a model file that kdray wrote.
        name: of the format.
        out: what to write; None: RUN/student.SUFFIX, or MODEL.SUFFIX. It must not be there yet; missing folders are
            made.
        temperature: divides the logits.
        int8: weights and activations of 8 bits, whose ranges the images that the run has bought set. ONNX alone.

    Raises:
        ConfigError: the temperature is not above 0, `where` is neither, or 8 bits are wanted of another format or
            without a run.
        RunDirectoryError: the run is not finished.
        ExportError: the format is unknown, a package is missing, `out` is there, or the file says something else.
            No file is left then.
    """
    kind = find_format(name)
    kind.check_installed()
    check_temperature(temperature)
    run, student = find_student(where)
    if int8 and kind.name != "onnx":
        raise ConfigError(f"--int8 is for --format onnx, not {kind.name}; leave it out")
    if int8 and run is None:
        raise ConfigError(f"--int8 needs a run, whose bought images set the ranges, and {where} is none")
    result = None if run is None else _finished(run)
    card = read_own_card(student)
    graph = Deployed(load_student(student), temperature).eval()
    target = _target(student, kind, out, "-int8" if int8 else "")
    images = _random(card) if run is None or result is None else _bought(run, result)
    about = About(
        card=card,
        names=tuple(card.classes or map(str, range(card.num_classes))),
        temperature=temperature,
        figures={} if result is None else _figures(result),
    )
    temporary, small = (target.with_name(f".{target.stem}.{os.getpid()}.{end}{kind.suffix}") for end in ("tmp", "int8"))
    compared = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        kind.write(graph, about, temporary)
        difference = largest_difference(kind.load(temporary), graph, images)
        if int8 and run is not None and result is not None:
            compared = _quantised(run, result, temporary, small, card)
        os.rename(small if int8 else temporary, target)
    except OSError as error:
        raise ExportError(f"cannot write {target}: {error.strerror or error}; choose another --out") from None
    finally:
        for path in (temporary, small):
            _remove(path)
    files = [target] if target.is_file() else [path for path in target.rglob("*") if path.is_file()]
    return Exported(
        path=target,
        size=sum(file.stat().st_size for file in files),
        difference=difference,
        images=len(images),
        real=result is not None,
        int8=compared,
    )


def _quantised(run: RunDirectory, result: Result, network: Path, out: Path, card: ModelCard) -> "Int8":
    """Write the network of 8 bits, and compare the two: on the test images where they are there and have labels, else
    on images that were bought and set no range."""
    from kdray.export.int8 import compare, quantise

    bought = run.read_labelled(_newest(result), card.num_classes, count=2 * _RANGES).images
    order = torch.from_numpy(numpy_generator(result.config.seed, "ranges").permutation(len(bought)))
    ranges, others = order.tensor_split(2)
    quantise(network, out, bought[ranges])
    try:
        test = read_test(result.config, shape=card.image_shape)
    except KdrayError:  # the files are not there any more
        test = None
    if test is not None and test.labels is not None:
        test = with_teachers_labels(test, card.classes, card.num_classes, field="test")
        return compare(network, out, test.images, test.labels)
    return compare(network, out, bought[others] if len(others) else bought, None)


def _finished(run: RunDirectory) -> Result:
    result = read_result(run)
    if run.status.exists():
        state = read_status(run).state
    else:  # a run of a sweep, which keeps a state of each trial instead
        state = "finished" if run.is_complete(result.config.last_round) else "stopped"
    if state != "finished":
        raise RunDirectoryError(
            f"{run.path} is {state}, and not finished; go on with: kdray resume {run.path}, or export the student that "
            f"it has so far: kdray export {run.student}"
        )
    return result


def _target(student: Path, kind: Format, out: Path | None, end: str) -> Path:
    default = student.with_name(f"{student.stem}{end}{kind.suffix}" if kind.suffix else f"{student.stem}-{kind.name}")
    target = default if out is None else out.absolute()
    if target.suffix != kind.suffix and kind.suffix:
        raise ExportError(f"--out: {target.name} is no name for --format {kind.name}; it must end in {kind.suffix}")
    if target.exists():
        raise ExportError(f"--out: {target} is there already, and nothing is overwritten; choose another --out")
    check_writable(target, "--out")
    return target


def _bought(run: RunDirectory, result: Result) -> Tensor:
    return run.read_labelled(_newest(result), result.num_classes, count=_CHECKED).images


def _newest(result: Result) -> int:
    """The newest round that bought anything."""
    return max(metrics.round for metrics in result.history if metrics.bought)


def _random(card: ModelCard) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (8, *card.image_shape), dtype=torch.uint8, generator=generator)


def _figures(result: Result) -> dict[str, str]:
    """What a model card says of the run."""
    last, receipt = result.history[-1], result.receipt
    rows = {
        "teacher": ", ".join(receipt.teachers) or "unknown",
        "candidates": result.config.pool.kind,
        "queries": f"{receipt.paid:,} of the teacher, in {len(result.history)} rounds",
    }
    shares = {
        "accuracy on the test images": last.student_accuracy,
        "the teacher's accuracy on them": last.teacher_accuracy,
        "agreement with the teacher on them": last.agreement,
    }
    return rows | {name: f"{share:.2%}" for name, share in shares.items() if share is not None}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
