"""The errors that kdray raises on purpose. A message says what happened, with which value, and what to do.

All errors have one base class, so the command line prints the message and exits with code 2 without a traceback.
All errors take one string, so a Ray actor can return them unchanged.
"""

from typing import ClassVar


class KdrayError(Exception):
    """Base of all errors raised on purpose by kdray."""

    repeats: ClassVar[bool] = False
    """Whether a run that goes on with the same config ends the same way again."""


class ConfigError(KdrayError):
    """A config field is unknown, of the wrong type or out of range."""


class ImageSetError(KdrayError):
    """An image set cannot be read: missing, corrupt, empty, or of mixed sizes."""


class ModelError(KdrayError):
    """A model is unknown, its weights do not fit, or it cannot take the images it is given."""


class TrainingError(KdrayError):
    """A network cannot be trained: its loss is not finite."""

    repeats = True


class TeacherError(KdrayError):
    """The teacher cannot be built, or its answers are invalid."""


class OneClassError(TeacherError):
    """All answers so far are the same: there is nothing to learn from them."""

    repeats = True


class TeacherBusy(TeacherError):
    """A teacher of your own raises it: it cannot answer now, and nothing is charged. It is asked again later.

    Args:
        message: what the user reads.
        wait_s: seconds to leave the teacher alone; None rests for 0.5, 1, 2, ... seconds.
    """

    def __init__(self, message: str = "the teacher is busy", wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s

    def __reduce__(self) -> tuple[type["TeacherBusy"], tuple[str, float | None]]:
        return type(self), (str(self), self.wait_s)


class ImageDeclined(TeacherError):
    """A teacher of your own raises it: it does not take these images, and nothing is charged. They are asked again in
    halves, until the image that it does not take is alone; that one is set aside."""


class BudgetExceeded(KdrayError):
    """A reservation would exceed the budget. Nothing was reserved and no query was made."""


class BudgetLost(BudgetExceeded):
    """A run's own budget went to queries that were never answered: no round comes after those it has."""


class Halted(KdrayError):
    """The sweep is being stopped: its ledger grants no more queries."""


class LedgerError(KdrayError):
    """The ledger file cannot be used: it has another schema or another budget, or it is not a ledger."""


class PoolExhausted(KdrayError):
    """More candidates were requested than are left in the pool."""

    repeats = True


class ScoringError(KdrayError):
    """The student's scores are invalid, or no worker is left."""


class DivergedError(ScoringError):
    """The student's outputs are not finite."""

    repeats = True


class RunDirectoryError(KdrayError):
    """The run directory is missing, is in use, or belongs to another config."""


class ClusterError(KdrayError):
    """The Ray cluster cannot be reached, or refuses this client."""


class ExportError(KdrayError):
    """A student cannot be written in a format, or what was written does not say what the student says."""


class SweepError(KdrayError):
    """A sweep cannot be run as it is configured, or none of its trials can."""
