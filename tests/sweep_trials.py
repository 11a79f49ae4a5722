"""Trials of a sweep, made by hand."""

from kdray.observers.base import RoundMetrics
from kdray.sweeps.results import Trial


def after(number=0, accuracy=None, paid=100, reused=0, **fields):
    """Metrics of a round; `paid` counts from the start of the run, `reused` in the round."""
    usual = {
        **{"round": number, "images": paid + reused, "queries": paid, "bought": 0, "reused": reused, "short": 0},
        **{"set_aside": 0, "evaluated": 0, "search": {}, "student_accuracy": accuracy, "teacher_accuracy": None},
        **{"success_rate": None, "agreement": None, "evaluation_queries": 0, "estimate_queries": 0, "estimate": {}},
        **{"loss": 0.5, "seconds": {}},
    }
    return RoundMetrics(**usual | fields)


def trial(name, accuracies=(), state="finished", cause="", paid=100, reused=0, **values):
    """A trial of one round, with a seed for each accuracy; __ in the name of a value stands for a dot."""
    return Trial(
        name=name,
        values={key.replace("__", "."): value for key, value in values.items()},
        state=state,
        cause=cause,
        seeds=range(len(accuracies)),
        histories=[[after(accuracy=accuracy, paid=paid, reused=reused)] for accuracy in accuracies],
    )
