"""The style of the figures, which are SVG text."""

import io
import warnings
from collections.abc import Sequence
from statistics import median_low
from typing import TypeVar

import matplotlib

matplotlib.use("svg")
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from kdray.utils.files import shown

_T = TypeVar("_T")

INK, SOFT, GRID, BACK = "#1f2933", "#5f6c7b", "#d9dee4", "#ffffff"
COLOURS = ("#0b6e99", "#c2410c", "#4d7c0f", "#7c3aed", "#be185d", "#475569")
BEST = COLOURS[1]
ON_DARK, ON_LIGHT = "#fffffe", "#1f2934"
"""Text on what has a colour of its own, which is the same on light and on dark pages; so these are, too."""
BAD_TO_GOOD = LinearSegmentedColormap.from_list("kdray", ["#dbe7ee", "#7fb3cc", "#0b6e99", "#083a52"])


def new_axes(width: float = 6.4, height: float = 3.6) -> tuple[Figure, Axes]:
    """A figure of this size in inches, with one plot in it."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


_THEME = {INK: "ink", SOFT: "soft", GRID: "line", BACK: "back"} | {
    colour: f"c{number}" for number, colour in enumerate(COLOURS, start=1)
}


def svg(figure: Figure) -> str:
    """The figure as an <svg> element. Its text stays text, in the page's sans-serif font, and its colours are the
    page's: base.html has others for dark screens. It is hidden from screen readers: what it shows is told beside it."""
    buffer = io.StringIO()
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set(facecolor="none", edgecolor="none")
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}), warnings.catch_warnings():
        # The browser's fonts show the text; matplotlib's own, which may lack a character, only measures it.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        FigureCanvasSVG(figure).print_svg(buffer)  # savefig would draw all of it twice, to lay it out first
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace("<svg", '<svg aria-hidden="true"', 1)
    for colour, name in _THEME.items():
        text = text.replace(f": {colour}", f": var(--{name},{colour})")
    return text


def plain(text: str, most: int = 40) -> str:
    """A text that others wrote, as a label: one line of at most `most` characters, and no formula in it."""
    line = " ".join(shown(text).split())
    line = "".join(character if character.isprintable() else "�" for character in line)
    line = line if len(line) <= most else line[: most - 1] + "…"
    return ("\u200b" if line.startswith("_") else "") + line.replace("$", r"\$")  # a legend hides what starts with _


def short_number(value: float, position: float = 0) -> str:
    """A number as a tick has it: 2,000 or 0.35. A formatter of matplotlib's, which also gives the tick's position."""
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e7 else f"{value:.4g}"


def set_apart(ticks: Sequence[tuple[float, _T]], least: float) -> list[tuple[float, _T]]:
    """The ticks of an axis from 0 to 1 without those that come too near: both ends first, then in the order given."""
    kept: list[tuple[float, _T]] = []
    for height, text in sorted(ticks, key=lambda tick: tick[0] not in (0.0, 1.0)):
        if all(abs(height - other) >= least for other, _ in kept):
            kept.append((height, text))
    return kept


def suits_logarithm(values: Sequence[float], span: float) -> bool:
    """Whether a logarithmic scale shows these positive values better: they span `span`, and most are at the low end.

    A uniform sample of [0, 1] may span four decades too, but a logarithmic scale would press it against its end.
    """
    low, high = min(values), max(values)
    return low > 0 and high / low >= span and median_low(values) < low + 0.3 * (high - low)
