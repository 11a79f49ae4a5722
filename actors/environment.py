"""What Ray must find in the environment before it is imported: it reads it once, at import. Does not import Ray."""

import os
from collections.abc import MutableMapping
from pathlib import Path


def prepare(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set token authentication where the user has a token and has not said otherwise.

    Ray looks for the token by itself only with RAY_ADDRESS=auto; with an explicit address it goes without and hangs.
    """
    if "RAY_AUTH_MODE" not in environ and environ.get("RAY_ADDRESS") and _has_token(environ):
        environ["RAY_AUTH_MODE"] = "token"


def _has_token(environ: MutableMapping[str, str]) -> bool:
    if environ.get("RAY_AUTH_TOKEN"):
        return True
    path = environ.get("RAY_AUTH_TOKEN_PATH")
    return (Path(path) if path else Path.home() / ".ray" / "auth_token").is_file()
