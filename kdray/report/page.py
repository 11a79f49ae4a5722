"""RUN/report.html: what was bought, what it made of the student, and some of the images, on one self-contained page."""

import base64
from collections.abc import Sequence
from pathlib import Path

import jinja2

from kdray.artefacts import RunDirectory
from kdray.config_file import dump_config
from kdray.errors import RunDirectoryError
from kdray.files import write_bytes
from kdray.images import encode_png
from kdray.observers import RoundMetrics
from kdray.report.figures import accuracy_figure, time_figure
from kdray.run import Result, read_result
from kdray.students.export import read_card

_SHOWN = 8  # candidates of a round


def write_report(directories: Sequence[RunDirectory]) -> Path:
    """Write the page of the first run, comparing it with the others where there are any; its path.

    Raises:
        RunDirectoryError: a directory holds no finished round.
    """
    if not directories:
        raise RunDirectoryError("give at least one run directory")
    results = [read_result(directory) for directory in directories]
    first, directory = results[0], directories[0]
    runs = [(result.directory.name, result.history) for result in results]
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = lambda share: "–" if share is None else f"{100 * share:.2f} %"
    page = environment.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    html = page.render(
        result=first,
        money=lambda cost: "–" if cost is None else f"{cost:,.2f} {first.receipt.currency}",
        last=first.history[-1],
        found=_found,
        others=results[1:],
        accuracy=accuracy_figure(runs),
        time=time_figure(first.history),
        gallery=[_gallery(directory, first, m.round) for m in first.history],
        config=dump_config(first.config),
    )
    write_bytes(directory.report, html.encode())
    return directory.report


def _found(metrics: RoundMetrics) -> str:
    """The share of the truly lowest that a round's search found."""
    search = metrics.search
    if not search:
        return "–"
    if search["keep"] is None:
        return "all"
    if search["recall"] is None:
        return "not estimated"
    return f"{100 * search['recall']:.1f} % ({100 * search['recall_low']:.1f} to {100 * search['recall_high']:.1f})"


def _gallery(directory: RunDirectory, result: Result, number: int) -> list[dict[str, str]]:
    """The first few images a round bought, as the teacher saw them, with what it said."""
    labelled = directory.read_labelled(number, result.num_classes, count=_SHOWN)
    candidates = directory.read_candidates(number)
    position = {int(key): k for k, key in enumerate(candidates.ids)}
    names = _class_names(result)
    shown = []
    for k in range(len(labelled)):
        image = base64.b64encode(encode_png(labelled.images[k].numpy())).decode()
        row = position[int(labelled.ids[k])]
        said = names[int(labelled.answers.labels[k])]
        if labelled.answers.probs is not None:
            top = labelled.answers.probs[k].topk(min(2, result.num_classes))
            said = ", ".join(f"{names[int(c)]} {100 * float(p):.0f} %" for p, c in zip(*top, strict=True) if p >= 0.005)
        columns = {name: values[row] for name, values in candidates.columns.items()}
        about = (
            f"{columns['lambda']:g} · #{columns['i']} + {1 - columns['lambda']:g} · #{columns['j']}"
            if "lambda" in columns
            else ""
        )
        if candidates.scores is not None:
            about += f", student {candidates.scores[row]:.2f} sure"
        shown.append({"png": image, "said": said, "about": about})
    return shown


def _class_names(result: Result) -> list[str]:
    card = read_card(result.directory / "student.safetensors")
    return list(card.classes) if card.classes else [str(k) for k in range(card.num_classes)]
