"""Every error a user can meet. A message says what happened, with which value, and what to do.

One base class, so the command line prints the message and exits with code 2 without a traceback.
All of them take one string, so they survive the trip back from a Ray actor unchanged.
"""


class KdrayError(Exception):
    """Base of all errors raised on purpose by kdray."""


class ConfigError(KdrayError):
    """A config field is unknown, of the wrong type or out of range."""


class ImageSetError(KdrayError):
    """An image set cannot be read: missing, corrupt, empty, or of mixed sizes."""


class ModelError(KdrayError):
    """A model is unknown, its weights do not fit, or it cannot take the images it is given."""


class TeacherError(KdrayError):
    """The teacher cannot be built, or its answers make no sense."""


class BudgetExceeded(KdrayError):
    """A reservation would pass the budget. Nothing was reserved and nothing was asked."""


class LedgerError(KdrayError):
    """The ledger file cannot be used: another schema, another budget, or not a ledger at all."""


class PoolExhausted(KdrayError):
    """More candidates were asked for than the pool still holds."""


class ScoringError(KdrayError):
    """The student's scores cannot be used, or no scoring worker is left."""


class RunDirectoryError(KdrayError):
    """The run directory is missing, in use, or belongs to another config."""


class ClusterError(KdrayError):
    """The Ray cluster cannot be reached, or refuses this client."""
