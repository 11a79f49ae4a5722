"""The sections that say what may be spent. A receipt needs them and nothing else of a config."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from kdray.config.files import read_yaml
from kdray.errors import ConfigError
from kdray.sections.base import Section


class BudgetSection(Section):
    """The limits on queries. The ledger enforces them as hard caps."""

    resumable_fields: ClassVar[tuple[str, ...]] = ("evaluation", "price_per_query", "currency")

    queries: Annotated[int, Field(ge=1, lt=1 << 62)]
    """Maximum number of training queries, including round 0."""
    evaluation: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Maximum number of queries on test images, for agreement and the teacher's accuracy. They are counted separately.
    auto: the whole test set if the teacher is local, none if the teacher may cost money; of test images without labels
    nothing is measured then."""
    price_per_query: Annotated[float, Field(ge=0)] | None = None
    """Price of one query, for `kdray plan` and the report."""
    currency: str = "USD"
    """Currency of the price."""


class LedgerSection(Section):
    """The record of every answer that was paid for. Runs that share a ledger never pay twice for the same
    image, unless `pool.requery` asks again."""

    path_fields: ClassVar[tuple[str, ...]] = ("path",)
    resumable_fields: ClassVar[tuple[str, ...]] = ("path", "queries")

    path: str | None = None
    """Path of the ledger file, in a folder that exists; null puts it into the run directory. Runs and trials with the
    same path share it."""
    queries: Annotated[int, Field(ge=1, lt=1 << 62)] | None = None
    """Hard cap on the training queries of all runs that share the file together, in addition to the `budget.queries` of
    each run; null sets no cap. The cap is stored in the file; `kdray ledger FILE --budget N` changes it."""

    @model_validator(mode="after")
    def _a_cap_for_all_needs_a_file_for_all(self) -> "LedgerSection":
        if self.queries is not None and self.path is None:
            raise ValueError("ledger.queries is set, but ledger.path is null; give the file that is shared")
        return self


def read_money(path: Path) -> tuple[BudgetSection, LedgerSection]:
    """The sections `budget` and `ledger` of a run's config.yaml; the others are not looked at.

    Raises:
        ConfigError: the file is not readable, or one of the two is wrong.
    """
    data = read_yaml(path)
    try:
        return BudgetSection.model_validate(data.get("budget")), LedgerSection.model_validate(data.get("ledger") or {})
    except (ValidationError, AttributeError):
        raise ConfigError(f"{path} is not the config of a run: its budget or ledger cannot be read") from None


def read_price_of_sweep(path: Path) -> tuple[float | None, str]:
    """Price and currency of a sweep, of its sweep.yaml; see `price_of_sweep`.

    Raises:
        ConfigError: the file is not readable, or is not that of a sweep.
    """
    data = read_yaml(path)
    try:
        return price_of_sweep(data["base"], data["space"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ConfigError(f"{path} is not the file of a sweep: its base or space cannot be read") from None


def price_of_sweep(base: Mapping[str, Any], space: Mapping[str, Any]) -> tuple[float | None, str]:
    """Price of a query and its currency, of all trials of a sweep; (None, "") where it has no price, or several.

    Args:
        base, space: as SWEEP/sweep.yaml holds them. What else they say is not looked at.
    """
    found = set()
    for budget in _budgets(base.get("budget"), space):
        try:
            section = BudgetSection.model_validate({**budget, "queries": 1})
        except ValidationError:  # a trial with it fails
            continue
        found.add((section.price_per_query, section.currency))
    return found.pop() if len(found) == 1 else (None, "")


def _budgets(budget: Any, space: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The sections `budget` that trials may have, as far as they say what a query costs."""
    keys = [key for key in ("budget", "budget.price_per_query", "budget.currency") if key in space]
    if not keys:
        yield budget if isinstance(budget, Mapping) else {}
        return
    (given,) = space[keys[0]].values()
    rest = {key: domain for key, domain in space.items() if key != keys[0]}
    for value in given:  # of a range its ends, which differ
        if keys[0] == "budget":
            yield from _budgets(value, rest)
        else:
            yield from _budgets({**(budget or {}), keys[0].partition(".")[2]: value}, rest)
