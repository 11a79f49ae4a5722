"""Packages that an extra of kdray brings."""

import importlib.util
from collections.abc import Sequence


def why_missing(what: str, needs: Sequence[str], extra: str) -> str | None:
    """What a user is told where packages are missing, with the command that installs them; None where they are there.

    Args:
        what: needs them.
        needs: the packages, as they are imported.
        extra: of kdray that brings them.
    """
    missing = [package for package in needs if importlib.util.find_spec(package) is None]
    if not missing:
        return None
    named = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
    are = "is" if len(missing) == 1 else "are"
    return f"{what} needs {named}, which {are} not installed: pip install 'kdray[{extra}]'"
