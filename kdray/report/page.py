"""RUN/report.html: one page that stands alone, for whoever has to decide whether the student is good enough."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdray.config.load import differences, dump_config
from kdray.config.root import Config
from kdray.errors import RunDirectoryError
from kdray.metrics.speed import size_of
from kdray.observers.base import RoundMetrics
from kdray.pages.html import money, render
from kdray.report.captions import likeliest, made_of, what_asked
from kdray.report.curve import curve_of
from kdray.report.failures import Failures, read_failures
from kdray.report.figures import (
    accuracy_figure,
    agreement_figure,
    curve_figure,
    matrix_figure,
    reliability_figure,
    spread,
    time_figure,
)
from kdray.report.pictures import picture
from kdray.report.trust import accuracy_interval, reasons, recall_words, remarks
from kdray.runs.directory import RunDirectory
from kdray.runs.result import Result, read_result
from kdray.utils.files import check_writable, distinct_names, shown, write_bytes
from kdray.utils.text import counted

# A page has less than 2 MB, however long the run: pictures have 4 kB or so, and nothing else is large.
_ROUNDS, _SHOWN = 8, 8  # rounds whose images are shown, and images of each
_ROWS = 60  # rounds of the table
_REMARKS = 200
_RUNS = 40  # in a comparison
_CONFIG = 100_000  # characters of the config


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """A run beside others.

    Attributes:
        name: as short as tells it apart.
        result: of it.
        differs: from the first run, in words.
    """

    name: str
    result: Result
    differs: str


def write_report(directories: Sequence[RunDirectory], out: Path | None = None) -> Path:
    """Write the page of the first run, with a comparison to the other runs if there are any, and return its path.

    Args:
        out: the file to write; None writes RUN/report.html.

    Raises:
        RunDirectoryError: a directory holds no finished round.
        ConfigError: the page cannot be written there.
    """
    if not directories:
        raise RunDirectoryError("give at least one run directory")
    if not directories[0].is_run():
        raise RunDirectoryError(f"{directories[0].path} holds no run")
    page_file = out or directories[0].report
    check_writable(page_file, "--out")
    results = [read_result(directory) for directory in directories]
    names = [shown(name) for name in distinct_names([result.directory for result in results])]
    write_bytes(page_file, _page(directories[0], results, names))
    return page_file


def _page(directory: RunDirectory, results: Sequence[Result], names: Sequence[str]) -> bytes:
    first = results[0]
    tested = read_failures(directory, first.student)
    known = tested if isinstance(tested, Failures) else None
    curve = curve_of(directory, first, None if known is None else known.compared)
    last = first.history[-1]
    runs = [(name, result.history) for name, result in zip(names[:_RUNS], results, strict=False)]
    config, told = dump_config(first.config), remarks(first.history)
    return render(
        Path(__file__).with_name("page.html"),
        result=first,
        money=lambda cost: money(cost, first.receipt.currency),
        last=last,
        interval=accuracy_interval(first, known),
        size=size_of(first.student),
        recall=recall_words,
        compared=_compared(results, names) if len(results) > 1 else [],
        accuracy=accuracy_figure(runs) if len(results) > 1 else None,
        agreement=agreement_figure(runs) if len(results) > 1 else None,
        curve=curve,
        curve_figure=curve_figure(curve, last.teacher_accuracy),
        why_not=tested if isinstance(tested, str) else None,
        tested=known,
        matrix=known and matrix_figure(known.matrix, known.names),
        reasons=reasons(first, known),
        reliability=known and known.calibration and reliability_figure(known.calibration.before),
        rounds=_rounds(first),
        time=time_figure(first.history),
        total=_seconds,
        seconds=_seconds(first.history),
        counted=counted,
        curve_rows=[curve.points[k] for k in spread(len(curve.points), _ROWS)],
        how=how(first.config),
        gallery=[_gallery(directory, first, first.history[k].round) for k in spread(len(first.history), _ROUNDS)],
        remarks=told[:_REMARKS],
        more_remarks=max(0, len(told) - _REMARKS),
        config=config[:_CONFIG],
        more_config=len(config) > _CONFIG,
    )


def _compared(results: Sequence[Result], names: Sequence[str]) -> list[_Compared]:
    first = results[0]
    rows = []
    for name, result in zip(names[:_RUNS], results, strict=False):
        words = [text for text in differences(first.config, result.config) if not text.startswith("ledger.")]
        told = "; ".join(words[:4]) + (f"; {len(words) - 4} more" if len(words) > 4 else "")
        rows.append(_Compared(name=name, result=result, differs=told[:300]))
    return rows


def _seconds(history: Sequence[RoundMetrics]) -> float:
    return sum(sum(m.seconds.values()) for m in history)


def _rounds(result: Result) -> list[dict[str, Any]]:
    """Rows of the table of rounds: the metrics, and what the round bought."""
    before = [0, *(m.paid for m in result.history)]
    return [
        {"m": result.history[k], "bought": result.history[k].paid - before[k]} for k in spread(len(before) - 1, _ROWS)
    ]


def how(config: Config) -> list[str]:
    """What the strategy and the pool of a config do, in words; "" of a user's own."""
    strategy, pool = (_first_sentence(part) for part in (config.select, config.pool))
    pairs = any(kind.mixes for kind in config.pool.kinds)
    if pool and not pairs and "pair" in strategy:
        strategy += " Here are no pairs and no λ: every candidate takes the place of a pair."
    return [strategy, pool]


def _first_sentence(part: object) -> str:
    """What a part of kdray's own says that it does; "" of a user's."""
    text = (type(part).__doc__ or "").split("\n\n")[0].replace("`", "")
    return " ".join(text.split()) if type(part).__module__.startswith("kdray.") else ""


def _gallery(directory: RunDirectory, result: Result, number: int) -> dict[str, Any]:
    """The first few images that a round queried, as the student sees them, with the teacher's answers."""
    labelled = directory.read_labelled(number, result.num_classes, count=_SHOWN)
    candidates = directory.read_candidates(number)
    names = result.classes or tuple(map(str, range(result.num_classes)))
    images = []
    for k, columns in enumerate(candidates.about(labelled.ids)):
        said = [
            names[label] if share is None else f"{names[label]}: {100 * share:.0f} %"
            for label, share in likeliest(labelled.answers, k, 2)
            if share is None or share >= 0.005
        ]
        about = [text for text in made_of(columns) if text]
        if "score" in columns:
            about += [f"{result.config.select.score_words()} {columns['score']:.2f}"]
        images.append(
            {
                "address": picture(labelled.images[k].numpy()),
                "said": ", ".join(said)[:80],
                "about": ", ".join(about)[:160],
            }
        )
    return {"number": number, "what": what_asked(candidates, result.config, number), "images": images}
