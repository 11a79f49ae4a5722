"""Environment variables that must be set before Ray is imported, because Ray reads them then. Does not import Ray."""

import os
from collections.abc import MutableMapping
from pathlib import Path


def prepare(environ: MutableMapping[str, str] = os.environ) -> None:
    """Enable token authentication if the user has a token and RAY_AUTH_MODE is not set.

    Ray looks for the token itself only with RAY_ADDRESS=auto. With an explicit address it sends no token and hangs.
    """
    if "RAY_AUTH_MODE" not in environ and environ.get("RAY_ADDRESS") and _has_token(environ):
        environ["RAY_AUTH_MODE"] = "token"


def _has_token(environ: MutableMapping[str, str]) -> bool:
    if environ.get("RAY_AUTH_TOKEN"):
        return True
    path = environ.get("RAY_AUTH_TOKEN_PATH")
    return (Path(path) if path else Path.home() / ".ray" / "auth_token").is_file()
