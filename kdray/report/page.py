"""RUN/report.html, a self-contained page with the queries of a run, the student's accuracy, and some of the images."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdray.config.load import dump_config
from kdray.errors import RunDirectoryError
from kdray.images.png import encode_png
from kdray.observers.base import RoundMetrics
from kdray.pages.html import money, render
from kdray.report.captions import likeliest, made_of, what_asked
from kdray.report.figures import accuracy_figure, agreement_figure, time_figure
from kdray.runs.confirmed import confirmed_note
from kdray.runs.directory import RunDirectory
from kdray.runs.result import Result, read_result
from kdray.utils.files import check_writable, distinct_names, shown, write_bytes

_SHOWN = 8  # images shown of each round


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
    first, directory = results[0], directories[0]
    names = [shown(name) for name in distinct_names([result.directory for result in results])]
    runs = [(name, result.history) for name, result in zip(names, results, strict=True)]
    page = render(
        Path(__file__).with_name("page.html"),
        result=first,
        money=lambda cost: money(cost, first.receipt.currency),
        last=first.history[-1],
        found=_found,
        compared=list(zip(names, results, strict=True)) if len(results) > 1 else [],
        remarks=[line for m in first.history for line in (*_robust(m), *_boundaries(m), *_training(m))],
        accuracy=accuracy_figure(runs),
        agreement=agreement_figure(runs),
        time=time_figure(first.history),
        gallery=[_gallery(directory, first, m.round) for m in first.history],
        config=dump_config(first.config),
    )
    write_bytes(page_file, page)
    return page_file


def _found(metrics: RoundMetrics) -> str:
    """The recall of a round's search, as text."""
    search = metrics.search
    if not search:
        return "–"
    if search["keep"] is None:
        return "all" if search["passes"] >= search["exhaustive"] else "–"
    if search["recall"] is None:
        return "not estimated"
    return f"{100 * search['recall']:.1f} % ({100 * search['recall_low']:.1f} to {100 * search['recall_high']:.1f})"


def _robust(metrics: RoundMetrics) -> list[str]:
    """Sentences about the numbers that RAD used in a round."""
    told, search = metrics.estimate, metrics.search
    lines = []
    if told:
        on = {"validation": "validation images", "sources": "random mixes"}[told["how"]]
        lines.append(
            f"Round {metrics.round}: m estimated from {told['answered']:,} answers on {on}: {told['share']:.1%} "
            f"mistakes ({told['low']:.1%} to {told['high']:.1%})."
        )
    if "rad_m" in search:
        lines.append(
            f"Round {metrics.round}: RAD with m = {search['rad_m']:,.0f} of {search['rad_n']:,} candidates and "
            f"w = {search['rad_w']:.3g} drew from the {search['rad_support']:,} candidates of largest gain."
        )
    return lines


def _boundaries(metrics: RoundMetrics) -> list[str]:
    """A sentence about the boundary pairs of a round, if it had any."""
    return [f"Round {metrics.round}: {confirmed_note(metrics.boundaries)}."] if metrics.boundaries else []


def _training(metrics: RoundMetrics) -> list[str]:
    """Sentences about how a round's student was trained."""
    told = metrics.training
    if not told:
        return []
    length = f"Round {metrics.round}: trained for {told['steps']:,} steps on {metrics.images:,} images."
    return [length, *(f"Round {metrics.round}: {note}." for note in told["notes"])]


def _gallery(directory: RunDirectory, result: Result, number: int) -> dict[str, Any]:
    """The first few images that a round queried, as the student sees them, with the teacher's answers."""
    labelled = directory.read_labelled(number, result.num_classes, count=_SHOWN)
    candidates = directory.read_candidates(number)
    names = _class_names(result)
    shown = []
    for k, columns in enumerate(candidates.about(labelled.ids)):
        image = base64.b64encode(encode_png(labelled.images[k].numpy())).decode()
        said = [
            names[label] if share is None else f"{names[label]} {100 * share:.0f} %"
            for label, share in likeliest(labelled.answers, k, 2)
            if share is None or share >= 0.005
        ]
        about = [text for text in made_of(columns) if text]
        if "score" in columns:
            about += [f"{result.config.select.score_words()} {columns['score']:.2f}"]
        shown.append({"png": image, "said": ", ".join(said), "about": ", ".join(about)})
    return {"number": number, "what": what_asked(candidates, result.config, number), "images": shown}


def _class_names(result: Result) -> list[str]:
    return list(result.classes or map(str, range(result.num_classes)))
