"""Templates of pages. All of them extend base.html, which has the look; what they are given is escaped."""

from functools import cache
from pathlib import Path

import jinja2

from kdray.utils.files import shown


def render(template: Path, **facts: object) -> bytes:
    """The page that a template makes of `facts`, as UTF-8."""
    return _compiled(template).render(facts).encode(errors="backslashreplace")


@cache
def _compiled(template: Path) -> jinja2.Template:
    base, page = (path.read_text(encoding="utf-8") for path in (Path(__file__).with_name("base.html"), template))
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"base.html": base, "page": page}),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda share: "–" if share is None else f"{100 * share:.2f} %"
    environment.filters["shown"] = shown
    return environment.get_template("page")


def money(cost: float | None, currency: str) -> str:
    """A price, or a dash where none is known."""
    return "–" if cost is None else f"{cost:,.2f} {currency}"
