"""Finding out, before anything is paid, that a ledger cannot be used."""

from pathlib import Path

from kdray.errors import ConfigError, LedgerError
from kdray.ledger.store import Ledger
from kdray.utils.files import check_writable


def check_ledger(path: Path, budget: int | None = None, field: str = "ledger.path") -> None:
    """Refuse a path at which no ledger can be kept. Nothing is written.

    Args:
        path: of a ledger file, which may not be there yet.
        budget: the cap that will be asked for; None asks for none.
        field: the config field of the path, for messages.

    Raises:
        ConfigError: the folder is missing, or nothing can be written there.
        LedgerError: the file is no ledger, or has another cap.
    """
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{field}: there is no folder {path.absolute().parent}; make it, or give another path")
    check_writable(path, field)
    if not path.exists() or path.stat().st_size == 0:
        return
    ledger = Ledger(path, read_only=True)
    try:
        rows = ledger.read("SELECT cap FROM accounts WHERE owner = '' AND purpose = 'training' AND cap IS NOT NULL")
    finally:
        ledger.close()
    if budget is not None and rows and rows[0][0] != budget:
        raise LedgerError(
            f"{path} was made for a budget of {rows[0][0]:,} queries, not {budget:,}; use another ledger, or change "
            "the cap with 'kdray ledger --budget'"
        )
