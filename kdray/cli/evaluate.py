"""`kdray evaluate`: how good a student is, in one table and one file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdray.cli.common import exit_on_error, output_width
from kdray.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from kdray.metrics.calibration import Calibration
    from kdray.metrics.evaluation import Evaluation, Share
    from kdray.runs.judging import Judged

_MOST_CLASSES = 20  # classes of the printed table: those that are found least; the file has all


def evaluate_command(
    where: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="A run directory, or a model file of kdray's.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[test.key=value]...", help="Fields of the images to measure on.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Images to measure on: a folder, or parquet files; default: the run's test images."),
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The teacher's answers: a ledger, or what it exported.")
    ] = None,
    ask: Annotated[
        int, typer.Option(metavar="N", help="Of a run: ask the teacher about N more of the images at most. It costs.")
    ] = 0,
    attack: Annotated[int, typer.Option(metavar="N", help="Images to attack, at most; 0 attacks none.")] = 1000,
    seconds: Annotated[float, typer.Option(metavar="S", help="To measure speed for, twice.")] = 1.0,
    out: Annotated[
        Path | None, typer.Option(help="The JSON file; default: RUN/evaluation.json, or MODEL.evaluation.json.")
    ] = None,
) -> None:
    """Measure a student: accuracy by class, calibration, agreement with the teacher, attacks, speed, size."""
    with exit_on_error():
        for option, number in (("--ask", ask), ("--attack", attack)):
            if number < 0:
                raise ConfigError(f"{option}: got {number:,}; give 0 or more")
        if not 0 < seconds <= 3600:
            raise ConfigError(f"--seconds: got {seconds:g}; give more than 0, and 3600 at most")
        from kdray.runs.directory import find_student
        from kdray.utils.files import check_writable, expand, shown, write_bytes

        where = expand(where)
        find_student(where)  # before the next imports, which bring torch
        default = where / "evaluation.json" if where.is_dir() else where.with_suffix(".evaluation.json")
        target = default if out is None else expand(out)
        check_writable(target, "--out")

        from kdray.observers.display import make_display
        from kdray.runs.judging import Wanted, judge
        from kdray.utils.console import make_console

        wanted = Wanted(
            data=None if data is None else expand(data),
            overrides=overrides or [],
            answers=None if answers is None else expand(answers),
            ask=ask,
            attacked=attack,
            seconds=seconds,
        )
        display = make_display()
        try:
            judged = judge(where, wanted, display)
        finally:
            display.close()
        write_bytes(target, judged.as_json().encode() + b"\n")
        console = make_console(width=output_width(140))
        for table in (_summary(judged), _classes(judged)):
            if table is not None:
                console.print(table)
        console.print(f"figures {shown(target)}", soft_wrap=True)


def _summary(judged: "Judged") -> "Table":
    from rich.table import Table

    table = Table(title=f"kdray: {judged.card.model} on {judged.found.images:,} images", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("what it is", overflow="fold")
    for row in (*_right(judged.found), *_beside(judged.found), *_hurt(judged.found), *_cost(judged.found)):
        table.add_row(*row)
    return table


def _right(found: "Evaluation") -> list[tuple[str, str, str]]:
    if found.labelled is None:
        return []
    one = found.labelled
    rows = [("accuracy", f"{one.top1.value:.2%}", f"95 % interval {_interval(one.top1)}")]
    if one.top5 is not None:
        rows.append(("top 5", f"{one.top5:.2%}", "the class is among the five likeliest"))
    if one.calibration is not None:
        rows += _calibration(one.calibration)
    if found.v_measure is not None:
        rows.append(("V-measure", f"{found.v_measure:.3f}", "how well the features cluster by class; 1 is perfect"))
    return rows


def _calibration(found: "Calibration") -> list[tuple[str, str, str]]:
    sure = sum((a or 0.0) * n for a, n in zip(found.before.confidence, found.before.counts, strict=True))
    share = sure / sum(found.before.counts)
    mended = f"{found.after.error:.2%} with logits divided by {found.temperature:.3g}"
    return [("calibration error", f"{found.before.error:.2%}", f"{share:.2%} sure on average; {mended}")]


def _beside(found: "Evaluation") -> list[tuple[str, str, str]]:
    if found.teacher is None:
        return []
    one = found.teacher
    told = f"on {one.images:,} images with an answer; 95 % interval {_interval(one.agreement)}"
    rows = [("agreement", f"{one.agreement.value:.2%}", told)]
    if one.teacher is not None:
        rows.append(("teacher", f"{one.teacher:.2%}", "its accuracy on these images"))
    if one.success is not None:
        rows.append(("success rate", f"{one.success:.2%}", "student / teacher, on these images"))
    return rows


def _hurt(found: "Evaluation") -> list[tuple[str, str, str]]:
    if found.attacked is None:
        return []
    one = found.attacked
    which = f"of {one.images:,} images; {one.none:.2%} as they are"
    rows = []
    for name, shares in (("FGSM", one.fgsm), ("I-FGSM", one.ifgsm)):
        told = ", ".join(f"{share:.2%} at ε = {eps:g}" for eps, share in zip(one.epsilons, shares, strict=True))
        rows.append((f"under {name}", f"{shares[-1]:.2%}", f"{told}, {which}"))
    return rows


def _cost(found: "Evaluation") -> list[tuple[str, str, str]]:
    speed, size = found.speed, found.size
    return [
        (
            "one image",
            f"{speed.latency_ms:.2f} ms",
            f"on one core; 95 % of passes within {speed.latency_slow_ms:.2f} ms",
        ),
        ("throughput", f"{speed.throughput:,.0f}/s", f"images on one core, {speed.batch_size} at a time"),
        ("size", f"{size.megabytes:.2f} MB", f"{size.parameters:,} parameters"),
    ]


def _classes(judged: "Judged") -> "Table | None":
    """Each class, or those that are found least, and what they are taken for."""
    found = judged.found.labelled
    if found is None:
        return None
    from rich.table import Table

    f1 = [one.f1 for one in found.classes]
    shown = list(range(len(f1)))
    title = "classes"
    if len(f1) > _MOST_CLASSES:
        shown = sorted(shown, key=lambda k: (f1[k] is None, f1[k] or 0.0))[:_MOST_CLASSES]
        title = f"the {_MOST_CLASSES} of {len(f1)} classes with the lowest F1"
    table = Table(title=title, title_justify="left")
    for name in ("class", "images", "precision", "recall", "F1", "most often taken for"):
        table.add_column(name, justify="left" if name in ("class", "most often taken for") else "right")
    for k in shown:
        one = found.classes[k]
        count, other = max((0 if j == k else count, -j) for j, count in enumerate(found.confusion[k]))
        wrong = f"{judged.names[-other]} ({count:,})" if count else ""
        figures = ("-" if share is None else f"{share:.2%}" for share in (one.precision, one.recall, one.f1))
        table.add_row(judged.names[k], f"{one.support:,}", *figures, wrong)
    return table


def _interval(share: "Share") -> str:
    return f"{share.low:.2%} to {share.high:.2%}"
